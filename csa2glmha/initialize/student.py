"""Build a student from a teacher: statistics, factors, corrections.

Two passes of the teacher over the calibration images. The first gathers the moments from which keys,
rows and values are factorised; in the second each new layer sees its teacher layer's input, and what
its logits lack gives the scales, the static bias and the guide. Pointwise layers need the first alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.glmha import GLMHA, GLMHAConfig, GuidedAttention, pooled_statistics
from csa2glmha.attention.layers import AttentionLayer, attention_layers, replace_layers
from csa2glmha.attention.pointwise import PointwiseGLMHA
from csa2glmha.data.batches import Inputs
from csa2glmha.initialize.compact import compact_factors
from csa2glmha.initialize.corrections import set_corrections
from csa2glmha.initialize.factorize import SeparableFactors, factorize
from csa2glmha.initialize.fit import LayerFit
from csa2glmha.initialize.moments import LayerMoments
from csa2glmha.initialize.pointwise import fill_pointwise
from csa2glmha.initialize.problems import Gathered, side_problem, teacher_filters, value_problem
from csa2glmha.initialize.statistics import LayerStatistics
from csa2glmha.models.base import run
from csa2glmha.progress import manual_progress, progress

ModelT = TypeVar("ModelT", bound=nn.Module)


def initialise_student(
    teacher: ModelT,
    configs: dict[str, GLMHAConfig],
    batches: Sequence[Inputs] | None,
    analyse: Callable[[AttentionLayer, Gathered], dict[str, Any]] | None = None,
) -> tuple[ModelT, dict[str, LayerFit]]:
    """A student with every named CSA layer replaced, initialised from the teacher's statistics.

    Args:
        teacher: in eval mode; it is not changed.
        configs: configuration of each layer to replace.
        batches: calibration inputs as the teacher expects them, a few images each; may be None when every
            layer is at full rank, which needs none.
        analyse: called with every layer that has statistics, before they are dropped; what it returns is in
            the layer's fit.

    Returns:
        The student, in eval mode on the teacher's device, and how well each layer fits.
    """
    layers = {name: layer for name, layer in attention_layers(teacher).items() if name in configs}
    student = copy.deepcopy(teacher)
    replace_layers(student, configs)
    device = next(teacher.parameters()).device
    student.to(device).eval()
    fits = {name: LayerFit() for name in layers}
    approximate = {name: layer for name, layer in layers.items() if not configs[name].full}
    statistics: dict[str, Gathered] = {}
    if approximate:
        if batches is None:
            raise ValueError("a rank below full needs calibration images")
        statistics = gather_statistics(teacher, approximate, configs, batches)
    with torch.no_grad():
        for name in progress(layers, what="factorising", unit="layer"):
            core, form = _core(student, name), layers[name].form
            gathered = statistics.pop(name, None)  # the largest tensors here; free them as we go
            if analyse is not None and gathered is not None:
                fits[name].analysis = analyse(layers[name], gathered)
            if isinstance(core, PointwiseGLMHA):
                assert not isinstance(gathered, LayerStatistics)
                fill_pointwise(core, form, gathered, fits[name])
            else:
                assert isinstance(core, GLMHA) and not isinstance(gathered, LayerMoments)
                _fill(core, form, gathered, fits[name])
        inexact = {
            name: layer
            for name, layer in approximate.items()
            if configs[name].bias_rank and not layer.form.embedded
        }
        if inexact and batches is not None:
            _fit_corrections(teacher, student, inexact, batches, fits)
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    return student, fits


def gather_statistics(
    teacher: nn.Module,
    layers: dict[str, AttentionLayer],
    configs: dict[str, GLMHAConfig],
    batches: Sequence[Inputs],
) -> dict[str, Gathered]:
    """First pass: the moments that each layer's configuration needs."""
    statistics: dict[str, Gathered] = {}
    for name, layer in layers.items():
        config = configs[name]
        c = config.head_channels
        statistics[name] = empty_statistics(
            layer.form,
            rows=config.rank_q < c,
            columns=config.rank_k < c or config.compact,
            values=config.rank_v < c,
        )
    fill_statistics(teacher, layers, statistics, batches)
    return statistics


def empty_statistics(form: ChannelAttention, rows: bool, columns: bool, values: bool) -> Gathered:
    """Of the kind that suits the layer, for the projections that are of interest."""
    if form.embedded:  # moments of the input tell all
        return LayerMoments(form)
    return LayerStatistics.empty(form, rows, columns, values)


def fill_statistics(
    teacher: nn.Module,
    layers: Mapping[str, AttentionLayer],
    statistics: Mapping[str, Gathered],
    batches: Sequence[Inputs],
) -> None:
    """Run the teacher on the calibration inputs and add what its layers see to their statistics."""

    def see(name: str, args: tuple[Any, ...]) -> None:
        layer, gathered = layers[name], statistics[name]
        x = layer.adapter.attention_input(args)
        if isinstance(gathered, LayerMoments):
            gathered.add(x, layer.adapter.value_factors(layer.module, args))
        else:
            gathered.add(x)

    with _observe(layers, see):
        _run(teacher, batches, "statistics")


def _core(model: nn.Module, name: str) -> GuidedAttention:
    module = model.get_submodule(name)
    return next(part for part in module.modules() if isinstance(part, GuidedAttention))


@contextmanager
def _observe(
    layers: Mapping[str, AttentionLayer], see: Callable[[str, tuple[Any, ...]], Any]
) -> Iterator[None]:
    """Call ``see(name, arguments)`` whenever one of the layers runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def run(_: nn.Module, args: tuple[Any, ...]) -> None:
            see(name, args)

        return run

    handles = [layer.module.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _run(model: nn.Module, batches: Sequence[Inputs], what: str) -> None:
    with manual_progress(what=what, unit="image", total=sum(len(inputs[0]) for inputs in batches)) as bar:
        for inputs in batches:
            run(model, inputs)
            bar.update(len(inputs[0]))


def _fill(core: GLMHA, form: ChannelAttention, statistics: LayerStatistics | None, fit: LayerFit) -> None:
    """Set everything that the first pass determines."""
    config = core.config
    core.output.copy_(form.output)
    if core.output_bias is not None and form.output_bias is not None:
        core.output_bias.copy_(form.output_bias)
    core.temperature.copy_(form.temperature.view(-1, 1, 1).expand_as(core.temperature))
    columns: SeparableFactors | None
    values: SeparableFactors | None
    if config.compact:
        assert statistics is not None
        columns, values, fit.clusters = compact_factors(
            statistics,
            teacher_filters(form.columns, form),
            teacher_filters(form.values, form),
            config.rank_k,
        )
    else:
        columns, values = None, None
        if config.rank_k < config.head_channels:
            assert statistics is not None and statistics.columns is not None
            columns = factorize(*side_problem(form.columns, form, statistics.columns), config.rank_k)
        if config.rank_v < config.head_channels:
            assert statistics is not None
            values = factorize(*value_problem(statistics), config.rank_v)
    rows = None
    if config.rank_q < config.head_channels:
        assert statistics is not None and statistics.rows is not None
        rows = factorize(*side_problem(form.rows, form, statistics.rows), config.rank_q)
    start = 0
    for projection, factors, width in zip(
        (form.rows, form.columns, form.values), (rows, columns, values), core.widths, strict=True
    ):
        _set_generator(core, slice(start, start + width), projection, factors, form.heads)
        start += width
    for parameter, factors, errors in (
        (core.expand_rows, rows, fit.row_error),
        (core.expand_columns, columns, fit.key_error),
        (core.expand_values, values, fit.value_error),
    ):
        if factors is not None:
            errors.extend(factors.error.sqrt().tolist())
            if parameter is not None:
                parameter.copy_(factors.expand)


def _set_generator(
    core: GLMHA, channels: slice, projection: Projection, factors: SeparableFactors | None, heads: int
) -> None:
    """Write one projection, factorised or as it is, into its channels of the layer's generators."""
    pointwise, pointwise_bias = projection.pointwise, projection.pointwise_bias
    depthwise, depthwise_bias = projection.depthwise, projection.depthwise_bias
    if factors is not None:
        mix = factors.mix.to(pointwise)
        pointwise = (mix @ pointwise.view(heads, -1, pointwise.shape[1])).flatten(0, 1)
        if pointwise_bias is not None:
            pointwise_bias = (mix @ pointwise_bias.view(heads, -1, 1)).flatten()
        if depthwise is not None:
            depthwise = factors.kernel.reshape(-1, *depthwise.shape[1:]).to(pointwise)
        else:
            pointwise = pointwise * factors.kernel.reshape(-1, 1).to(pointwise)
            if pointwise_bias is not None:
                pointwise_bias = pointwise_bias * factors.kernel.flatten().to(pointwise)
        if depthwise_bias is not None:
            depthwise_bias = factors.offset.flatten().to(pointwise)
    core.pointwise.weight[channels, :, 0, 0] = pointwise
    if core.pointwise.bias is not None:
        core.pointwise.bias[channels] = 0.0 if pointwise_bias is None else pointwise_bias
    if core.depthwise is not None and depthwise is not None:
        core.depthwise.weight[channels, 0] = depthwise
        if core.depthwise.bias is not None:
            core.depthwise.bias[channels] = 0.0 if depthwise_bias is None else depthwise_bias


@dataclass
class _LogitSamples:
    """Per calibration image: the teacher's logits, the student's, and the guide's features."""

    target: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)


def _fit_corrections(
    teacher: nn.Module,
    student: nn.Module,
    layers: dict[str, AttentionLayer],
    batches: Sequence[Inputs],
    fits: dict[str, LayerFit],
) -> None:
    """Second pass: scales, static bias and guide of every layer with approximate logits."""
    samples = {name: _LogitSamples() for name in layers}

    def see(name: str, args: tuple[Any, ...]) -> None:
        form, core, kept = layers[name].form, _core(student, name), samples[name]
        x = layers[name].adapter.attention_input(args)
        rows = form.rows.spread(form.rows.mix(x))
        columns = form.columns.spread(form.columns.mix(x))
        kept.target.append(form.logits(rows, columns).cpu())
        kept.logits.append(core.input_logits(x).cpu())
        kept.features.append(pooled_statistics(x).cpu())

    with _observe(layers, see):
        _run(teacher, batches, "logit corrections")
    for name in progress(layers, what="fitting corrections", unit="layer"):
        kept = samples.pop(name)
        set_corrections(
            _core(student, name),
            torch.cat(kept.target),
            torch.cat(kept.logits),
            torch.cat(kept.features),
            fits[name],
        )
