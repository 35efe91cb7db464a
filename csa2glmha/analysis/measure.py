"""From the statistics that the initialisation gathers to figures of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from csa2glmha.analysis.spectra import (
    cumulative_energy,
    energy_shares,
    relative_entropy,
    truncation_errors,
)
from csa2glmha.core.progress import progress
from csa2glmha.data.batches import Inputs
from csa2glmha.initialize.factorize import conditioned, teacher_bank
from csa2glmha.initialize.moments import LayerMoments
from csa2glmha.initialize.overflow import naming
from csa2glmha.initialize.problems import (
    Gathered,
    LowRankProblem,
    moment_value_problem,
    side_problem,
    subspace_problem,
    value_problem,
)
from csa2glmha.initialize.student import Needs, gather_statistics
from csa2glmha.reading.layers import AttentionLayer


def measure(
    teacher: nn.Module, layers: Mapping[str, AttentionLayer], batches: Sequence[Inputs]
) -> dict[str, Any]:
    """One pass of a teacher over calibration inputs, and :func:`analyse` of what it gathers.

    Args:
        teacher: in eval mode.
        layers: its CSA layers, by name.
        batches: inputs as the teacher expects them, a few images each.
    """
    needs = {name: Needs(queries=False) for name in layers}
    return analyse(layers, gather_statistics(teacher, layers, needs, batches))


def analyse(layers: Mapping[str, AttentionLayer], statistics: Mapping[str, Gathered]) -> dict[str, Any]:
    """Every layer's figures, as JSON values: {"images": int, "layers": [as :func:`analyse_layer`]}."""
    found = []
    for name, gathered in progress(statistics.items(), what="spectra", unit="layer"):
        with naming(name):
            found.append(analyse_layer(layers[name], gathered))
    return join(found)


def join(layers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of several layers, which have seen the same images, as :func:`analyse` gives them."""
    return {"images": max((layer["images"] for layer in layers), default=0), "layers": list(layers)}


def analyse_layer(layer: AttentionLayer, gathered: Gathered) -> dict[str, Any]:
    """One layer's figures, as JSON values.

    Returns:
        name, images, channels (C), heads, head_channels (c); per head: temperature; uniform_share,
        pattern_share and varying_share of the attention's energy, static_share, the sum of the first two;
        entropy, relative to uniform attention; largest, the mean over images of the largest entry;
        cumulative, c values, see :func:`cumulative_energy`; key_error_heads and value_error_heads, c values
        each, see :func:`predicted_errors`; and key_error, value_error, their root mean squares over the
        heads. Errors of what the statistics do not hold are empty lists.
    """
    form = layer.form
    maps = attention_maps(gathered)
    uniform, pattern, varying = energy_shares(maps)
    errors = predicted_errors(gathered)
    found: dict[str, Any] = {
        "name": layer.name,
        "images": len(maps),
        "channels": form.channels,
        "heads": form.heads,
        "head_channels": form.head_channels,
        "temperature": _rounded(form.temperature),
        "static_share": _rounded(uniform + pattern),
        "uniform_share": _rounded(uniform),
        "pattern_share": _rounded(pattern),
        "varying_share": _rounded(varying),
        "entropy": _rounded(relative_entropy(maps)),
        "largest": _rounded(maps.amax((-2, -1)).mean(0)),
        # Near 1 the digits that count are those of the rest.
        "cumulative": [[round(share, 9) for share in head] for head in cumulative_energy(maps).tolist()],
    }
    for part, heads in zip(("key", "value"), errors, strict=True):
        found[f"{part}_error"] = [] if heads is None else _rounded(heads.square().mean(0).sqrt())
        found[f"{part}_error_heads"] = [] if heads is None else [_rounded(head) for head in heads]
    return found


def attention_maps(gathered: Gathered) -> Tensor:
    """The attention of every image, (N, heads, c, c)."""
    if isinstance(gathered, LayerMoments):
        return gathered.freeze().maps()
    return gathered.maps()


def predicted_errors(gathered: Gathered) -> tuple[Tensor | None, Tensor | None]:
    """Relative errors of keys and values that low rank must have, in the metrics they are factorised in.

    A pointwise layer's keys and queries come from one projection: theirs is the error of both together.

    Returns:
        (heads, c) each, entry r - 1 for rank r, falling to 0; None for what the statistics do not hold.
    """
    if isinstance(gathered, LayerMoments):
        moments = gathered.freeze()
        logits = _errors(subspace_problem(moments))[:, : gathered.form.head_channels]
        logits[:, -1] = 0  # at full rank the layer computes its logits as the teacher does
        return logits, _errors(moment_value_problem(moments))
    form, keys = gathered.form, gathered.keys
    return (
        None if keys is None else _errors(side_problem(form.keys, form, keys)),
        None if gathered.attention is None else _errors(value_problem(gathered)),
    )


def _errors(problem: LowRankProblem) -> Tensor:
    offsets = None if problem.offsets is None else problem.offsets.double()
    return truncation_errors(
        teacher_bank(problem.kernels.double(), offsets),
        conditioned(problem.left_metric),
        conditioned(problem.right_metric),
    )


def _rounded(values: Tensor) -> list[float]:
    """Six digits; more would only make files long."""
    return [float(f"{value:.6g}") for value in values.tolist()]
