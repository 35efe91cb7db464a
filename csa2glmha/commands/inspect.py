"""What `inspect` shows of a checkpoint."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.checkpoint.student import TEACHER_VALUES, LoadedModel, load_model
from csa2glmha.commands.found import found_lines
from csa2glmha.config.network import NetworkOptions
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.hub import display_name
from csa2glmha.core.text import one_line
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.metrics.complexity import BY_VALUES, Complexity, count_complexity, format_macs, format_params
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import ForeignNetwork
from csa2glmha.networks.skipped import skipped_layers
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import AttentionLayer, attention_layers, glmha_layers, replace_layers, why_none
from csa2glmha.reading.recorded import RecordedReader
from csa2glmha.report.document import render_table

#: What a student's metadata say that is shown.
_TOLD = (
    "tool_version",
    "teacher_sha256",
    TEACHER_VALUES,
    "teacher_source",
    "teacher_weights",
    "seed",
    "ranks",
    "task",
    "attention",
    "ffn",
    "mask",
)


def inspect_model(
    checkpoint: Path,
    ranks: Ranks,
    input_size: int,
    weights: str | None = None,
    lowered: bool = False,
    network: NetworkOptions | None = None,
) -> dict[str, Any]:
    """Architecture, hyper-parameters and attention layers of a teacher or student file, as JSON values.

    Args:
        checkpoint: the file.
        ranks: for a teacher, those whose cost is estimated.
        input_size: side of the square input that MACs are counted for.
        weights: as for :func:`csa2glmha.load`.
        lowered: nobody asked for these ranks, so those above the widest head are lowered to it, and that is
            said.
        network: the user's own that the file is of.

    Raises:
        UsageError: a rank is above the channels of every head, and not to be lowered.
    """
    loaded = load_model(checkpoint, weights, network)
    model = loaded.model
    height, width = model.fixed_size or (input_size, input_size)
    shapes = model.input_shapes(height, width)
    now = count_complexity(model, *shapes)
    found: dict[str, Any] = {
        "file": display_name(checkpoint),
        **_what_it_is(loaded),
        "input_shapes": [list(shape) for shape in shapes],
        "params": now.params,
        "macs": now.macs,
        "flops": now.flops,
    }
    if now.by_values:
        found["notes"].append(BY_VALUES)
    if loaded.is_student:
        metadata = loaded.checkpoint.metadata
        found["student"] = {key: metadata[key] for key in _TOLD if metadata.get(key)}
        found["layers"] = [_student_layer(name, layer, now) for name, layer in glmha_layers(model).items()]
        found["feed_forwards"] = _narrowed(model, now)
        found["skipped"] = skipped_layers(model)
        return found
    layers = attention_layers(model)
    found["attention_share"] = sum(now.modules[name].macs for name in layers) / max(now.macs, 1)
    wide = feed_forwards(model).values()
    _, macs = now.params_and_macs(name for layer in wide for name in layer.modules)
    found["feed_forward_share"], found["feed_forward_networks"] = macs / max(now.macs, 1), len(wide)
    if isinstance(model, ForeignNetwork):
        found["forms"] = dict(Counter(map(form_in_words, layers.values())))
        found["refused"] = [{"name": name, "reason": reason} for name, reason in model.refused]
        found["refused_feed_forwards"] = [
            {"name": name, "reason": reason} for name, reason in model.refused_feed_forwards
        ]
        found["global_operators"] = list(model.global_operators)
    if not layers:
        if not isinstance(model, ForeignNetwork) or not model.refused:  # what is refused is told below
            found["notes"].append(why_none(model))
        found["layers"] = []
        return found
    widest = max(layer.form.head_channels for layer in layers.values())
    within = _at_most(ranks, widest) if lowered else ranks
    if within != ranks:
        found["notes"].append(
            f"the estimate is for ranks {within}: no head of this network has more than {widest} channels"
        )
    return found | _estimate(model, layers, within, now)


def _what_it_is(loaded: LoadedModel) -> dict[str, Any]:
    """What the file says of itself, and how its weights were taken from it."""
    file = loaded.checkpoint
    return {
        "sha256": file.sha256,
        "kind": "student" if loaded.is_student else "teacher",
        "architecture": loaded.model.architecture,
        "hyperparameters": loaded.model.hyperparameters,
        "weights": file.wrapper,
        "other_weights": list(file.others),
        "notes": list(file.notes),
    }


def form_in_words(layer: AttentionLayer) -> str:
    """How the queries, keys, values and the map of a layer are made, as it is told for networks of users."""
    form, reader = layer.form, layer.reader
    parts = ["linear projections" if form.pointwise else "depthwise projections"]
    parts += ["queries from a second input"] if form.query_channels is not None else []
    parts += [form.activation] if form.activation != "softmax" else []
    branch = reader.value_branch(layer.module) is not None
    times_map = form.value_branch and not (branch or form.map_only)
    if isinstance(reader, RecordedReader):
        times_map = reader.wiring.factor is not None
    parts += ["V times a map"] if times_map else []
    parts += ["a branch of V"] if branch else []
    parts += [f"beside: {form.beside}"] if form.map_only else []
    return ", ".join(parts)


def _student_layer(name: str, layer: GuidedAttention, counted: Complexity) -> dict[str, Any]:
    config, own = layer.config, counted.modules[name]
    return {
        "name": name,
        "heads": config.heads,
        "head_channels": config.head_channels,
        "params": own.params,
        "macs": own.macs,
        "rank_q": config.rank_q,
        "rank_k": config.rank_k,
        "rank_v": config.rank_v,
        "rank_pos": config.rank_pos,
        "route": config.route,
    }


def _narrowed(model: RestorationModel, counted: Complexity) -> list[dict[str, Any]]:
    """The feed-forward networks that have fewer hidden channels than the teacher's."""
    found = []
    for name, layer in feed_forwards(model).items():
        if layer.hidden < layer.hidden_before:
            params, macs = counted.params_and_macs(layer.modules)
            widths = {"hidden": layer.hidden, "hidden_before": layer.hidden_before}
            found.append({"name": name, **widths, "params": params, "macs": macs})
    return found


def _estimate(
    model: RestorationModel, layers: Mapping[str, AttentionLayer], ranks: Ranks, now: Complexity
) -> dict[str, Any]:
    """What a student of these ranks would cost, in all and layer by layer."""
    student, configs = copy.deepcopy(model), plan_layers(dict(layers), ranks)
    replace_layers(student, configs)
    then = count_complexity(student, *now.input_shapes)
    return {
        "estimate": {"ranks": str(ranks), "params": then.params, "macs": then.macs, "flops": then.flops},
        "layers": [
            {
                "name": name,
                "heads": layer.form.heads,
                "head_channels": layer.form.head_channels,
                "params": now.modules[name].params,
                "macs": now.modules[name].macs,
                "params_estimate": then.modules[name].params,
                "macs_estimate": then.modules[name].macs,
                "route": configs[name].route if name in configs else "as it is: it would be no cheaper",
            }
            for name, layer in layers.items()
        ],
    }


def _at_most(ranks: Ranks, widest: int) -> Ranks:
    """The same ranks, none above the channels that the widest head has."""
    return Ranks(
        *(rank if rank is None else min(rank, widest) for rank in (ranks.q, ranks.k, ranks.v, ranks.pos))
    )


def describe(found: dict[str, Any]) -> str:
    """The same for people."""
    shape = " x ".join(str(n) for n in found["input_shapes"][0])
    lines = [
        one_line(f"{found['file']}: {found['architecture']} ({found['kind']})"),
        *(f"  {one_line(f'{key}: {value}')}" for key, value in found["hyperparameters"].items()),
        *(f"  {one_line(f'{key}: {value}')}" for key, value in found.get("student", {}).items()),
        *(f"  note: {one_line(note)}" for note in found["notes"]),
        *found_lines(found),
        "",
    ]
    if not found["layers"]:
        total = (("parameters", format_params(found["params"])), ("MACs", format_macs(found["macs"])))
        return "\n".join([*lines, render_table(total, (f"input {shape}", ""))])
    if found["kind"] == "teacher":
        rows: list[tuple[str, ...]] = [_teacher_row(layer) for layer in found["layers"]]
        rows.append(
            (
                "whole model",
                "",
                "",
                format_params(found["params"]),
                format_params(found["estimate"]["params"]),
                format_macs(found["macs"]),
                format_macs(found["estimate"]["macs"]),
            )
        )
        what = "then"
        header: tuple[str, ...] = (f"layer, input {shape}", "heads", "c", "params", what, "MACs", what)
    else:
        rows = [_student_row(layer) for layer in found["layers"]]
        rows += [_narrowed_row(layer) for layer in found["feed_forwards"]]
        rows += [(name, "", "", "skipped", "0", "0") for name in found["skipped"]]
        rows.append(("whole model", "", "", "", format_params(found["params"]), format_macs(found["macs"])))
        header = (f"layer, input {shape}", "heads", "c", "rank q/k/v", "params", "MACs")
    if found["kind"] == "teacher":
        lines.append(f"then: what ranks {found['estimate']['ranks']} would leave")
    return "\n".join([*lines, render_table(rows, header)])


def _teacher_row(layer: dict[str, Any]) -> tuple[str, ...]:
    return (
        layer["name"],
        str(layer["heads"]),
        str(layer["head_channels"]),
        format_params(layer["params"]),
        format_params(layer["params_estimate"]),
        format_macs(layer["macs"]),
        format_macs(layer["macs_estimate"]),
    )


def _narrowed_row(layer: dict[str, Any]) -> tuple[str, ...]:
    width = f"{layer['hidden']} of {layer['hidden_before']}"
    return (layer["name"], "", width, "", format_params(layer["params"]), format_macs(layer["macs"]))


def _student_row(layer: dict[str, Any]) -> tuple[str, ...]:
    c = layer["head_channels"]
    ranks = "/".join("full" if layer[key] == c else str(layer[key]) for key in ("rank_q", "rank_k", "rank_v"))
    return (
        layer["name"],
        str(layer["heads"]),
        str(c),
        ranks,
        format_params(layer["params"]),
        format_macs(layer["macs"]),
    )
