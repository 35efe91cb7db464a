"""Build a student from a teacher: statistics, factors, corrections.

Two passes of the teacher over the calibration images. The first gathers the logits, and the moments from
which keys, queries and values are factorised; in the second each new layer sees its teacher layer's input,
and what its own logits lack gives the scales, the static bias and the guide. Pointwise layers need the first
alone.

Any number of candidates for the place of one layer share the passes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.glmha import GLMHA, Generator
from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.attention.pointwise import PointwiseGLMHA
from csa2glmha.core.hooks import removed_after
from csa2glmha.core.parallel import in_threads
from csa2glmha.core.progress import manual_progress, progress
from csa2glmha.data.batches import Inputs
from csa2glmha.initialize.corrections import set_corrections
from csa2glmha.initialize.factorize import ITERATIONS, SeparableFactors
from csa2glmha.initialize.factors import Factors
from csa2glmha.initialize.fit import LayerFit
from csa2glmha.initialize.moments import LayerMoments
from csa2glmha.initialize.overflow import check_finite, naming
from csa2glmha.initialize.pointwise import fill_pointwise
from csa2glmha.initialize.problems import Gathered
from csa2glmha.initialize.statistics import LayerStatistics, LogitSamples
from csa2glmha.networks import run
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.layers import AttentionLayer, attention_layers

ModelT = TypeVar("ModelT", bound=nn.Module)


Statistics = dict[str, Gathered]


@dataclass(frozen=True)
class Candidate:
    """A converted layer, called as the teacher's is, and how well it fits."""

    config: GLMHAConfig
    module: nn.Module
    fit: LayerFit

    @property
    def core(self) -> GuidedAttention:
        """The attention in it."""
        return next(part for part in self.module.modules() if isinstance(part, GuidedAttention))


def initialise_student(
    teacher: ModelT,
    configs: dict[str, GLMHAConfig],
    batches: Sequence[Inputs] | None,
    statistics: Statistics | None = None,
    analyse: Callable[[AttentionLayer, Gathered], dict[str, Any]] | None = None,
) -> tuple[ModelT, dict[str, LayerFit]]:
    """A student with every named CSA layer replaced, initialised from the teacher's statistics.

    Args:
        teacher: in eval mode; it is not changed.
        configs: configuration of each layer to replace.
        batches: calibration inputs as the teacher expects them, a few images each; may be None when every
            layer is at full rank, which needs none.
        statistics: of these inputs, where they have been gathered already.
        analyse: called with every layer that has statistics, before they are dropped; what it returns is in
            the layer's fit.

    Returns:
        The student, in eval mode on the teacher's device, and how well each layer fits.
    """
    wanted = {name: [config] for name, config in configs.items()}
    made = initialise_layers(teacher, wanted, batches, statistics, analyse)
    student = copy.deepcopy(teacher)
    for name, (candidate,) in made.items():
        users_own(student).set_submodule(name, candidate.module)
    student.eval()
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    return student, {name: candidate.fit for name, (candidate,) in made.items()}


def initialise_layers(
    teacher: nn.Module,
    configs: Mapping[str, Sequence[GLMHAConfig]],
    batches: Sequence[Inputs] | None,
    statistics: Statistics | None = None,
    analyse: Callable[[AttentionLayer, Gathered], dict[str, Any]] | None = None,
    iterations: int = ITERATIONS,
) -> dict[str, list[Candidate]]:
    """Candidates for the place of every named layer, one for each of its configurations.

    Args: as :func:`initialise_student`; what ``analyse`` returns is in the first candidate's fit.
        iterations: of the refinement of factors, at most.

    Returns:
        Candidates in the order of the configurations, in eval mode on the teacher's device.
    """
    device = next(teacher.parameters()).device
    layers = {name: layer for name, layer in attention_layers(teacher).items() if name in configs}
    made = {
        name: [_empty_candidate(layers[name], config) for config in wanted]
        for name, wanted in configs.items()
    }
    for candidate in (candidate for candidates in made.values() for candidate in candidates):
        candidate.module.to(device).eval().requires_grad_(False)
    approximate = {name for name, wanted in configs.items() if any(not config.full for config in wanted)}
    keep = statistics is not None
    if approximate and statistics is None:
        if batches is None:
            raise ValueError("a rank below full needs calibration images")
        needs = {name: Needs.of(configs[name]) for name in approximate}
        statistics = gather_statistics(teacher, layers, needs, batches)
    wanted: dict[str, LogitSamples] = {}

    def fill(name: str) -> Iterator[None]:
        gathered = None if statistics is None else statistics.get(name)
        if isinstance(gathered, LayerStatistics):
            wanted[name] = gathered.samples
        if statistics is not None and not keep:
            statistics.pop(name, None)  # the largest tensors here; free them as we go
        with naming(name):
            if analyse is not None and gathered is not None:
                made[name][0].fit.analysis = analyse(layers[name], gathered)
            factors = Factors(layers[name].form, gathered, iterations)
            for candidate in made[name]:
                _fill_any(candidate, factors)
                check_finite(name, "its low-rank form is not finite", candidate.module.parameters())
                yield

    in_threads(fill, list(layers), what="factorising", unit="layer")
    with torch.no_grad():
        _correct(teacher, layers, made, wanted, batches)
    return made


def _correct(
    teacher: nn.Module,
    layers: Mapping[str, AttentionLayer],
    made: Mapping[str, Sequence[Candidate]],
    wanted: Mapping[str, LogitSamples],
    batches: Sequence[Inputs] | None,
) -> None:
    """Scales, static bias and guide of all candidates whose logits are approximate and made from maps."""
    inexact = {
        name: [
            candidate
            for candidate in candidates
            if candidate.config.bias_rank and not layers[name].form.from_moments
        ]
        for name, candidates in made.items()
    }
    inexact = {name: candidates for name, candidates in inexact.items() if candidates}
    if inexact and batches is not None:
        _fit_corrections(teacher, layers, inexact, wanted, batches)
    for name, candidates in inexact.items():
        for candidate in candidates:
            check_finite(name, "its corrections are not finite", candidate.module.parameters())


def _empty_candidate(layer: AttentionLayer, config: GLMHAConfig) -> Candidate:
    # What lies beside the attention is taken over from the copy.
    return Candidate(config, layer.reader.build(copy.deepcopy(layer.module), config), LayerFit())


@dataclass(frozen=True)
class Needs:
    """Which projections of a layer will be factorised."""

    queries: bool = True
    keys: bool = True
    values: bool = True

    @classmethod
    def of(cls, configs: Sequence[GLMHAConfig]) -> Needs:
        """What any of a layer's configurations needs."""

        def lower(rank: str) -> bool:
            return any(0 < getattr(config, rank) < config.head_channels for config in configs)

        compact = any(config.compact for config in configs)
        return cls(lower("rank_q"), lower("rank_k") or compact, lower("rank_v"))


def gather_statistics(
    teacher: nn.Module,
    layers: Mapping[str, AttentionLayer],
    needs: Mapping[str, Needs],
    batches: Sequence[Inputs],
) -> Statistics:
    """First pass: the moments of the named layers that are needed."""
    statistics = {name: _empty_statistics(layers[name].form, need) for name, need in needs.items()}

    def see(name: str, args: tuple[Any, ...]) -> None:
        layer, gathered = layers[name], statistics[name]
        inputs = layer.reader.attention_inputs(args)
        check_finite(name, "its input is not finite", inputs)
        if isinstance(gathered, LayerMoments):
            gathered.add(inputs[0], layer.reader.value_factors(layer.module, args))
        else:
            gathered.add(*inputs)

    with _observe({name: layers[name] for name in needs}, see):
        _run(teacher, batches, "statistics")
    return statistics


def _empty_statistics(form: ChannelAttention, need: Needs) -> Gathered:
    """Of the kind that suits the layer."""
    if form.from_moments:  # moments of the input tell all
        return LayerMoments(form)
    values = need.values and not form.map_only
    return LayerStatistics.empty(form, need.queries, need.keys, values)


def _fill_any(candidate: Candidate, factors: Factors) -> None:
    """Set everything that the first pass determines."""
    core, form = candidate.core, factors.form
    if isinstance(core, PointwiseGLMHA):
        gathered = None if candidate.config.full else factors.gathered
        assert not isinstance(gathered, LayerStatistics)
        fill_pointwise(core, form, gathered, candidate.fit)
    else:
        assert isinstance(core, GLMHA)
        _fill(core, factors, candidate.fit)


@contextmanager
def _observe(
    layers: Mapping[str, AttentionLayer], see: Callable[[str, tuple[Any, ...]], Any]
) -> Iterator[None]:
    """Call ``see(name, arguments)`` whenever one of the layers runs."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def run(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(name, layers[name].reader.bind(args, kwargs))

        return run

    handles = [
        layer.module.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in layers.items()
    ]
    with removed_after(handles):
        yield


@torch.no_grad()
def _run(model: nn.Module, batches: Sequence[Inputs], what: str) -> None:
    with manual_progress(what=what, unit="image", total=sum(len(inputs[0]) for inputs in batches)) as bar:
        for inputs in batches:
            run(model, inputs)
            bar.update(len(inputs[0]))


def _fill(core: GLMHA, factors: Factors, fit: LayerFit) -> None:
    """Set everything that the first pass determines."""
    config, form = core.config, factors.form
    if not config.map_only:
        core.output.copy_(form.output)
    if core.output_bias is not None and form.output_bias is not None:
        core.output_bias.copy_(form.output_bias)
    if core.temperature is not None:
        core.temperature.copy_(form.temperature.view(-1, 1, 1).expand_as(core.temperature))
    keys: SeparableFactors | None
    values: SeparableFactors | None
    if config.compact:
        keys, values, fit.clusters = factors.compact(config.rank_k)
    else:
        keys = factors.keys(config.rank_k)
        values = factors.values(config.rank_v)
    queries = factors.queries(config.rank_q)
    for generator, projection, each, width in zip(
        core.generators(),
        (form.queries, form.keys, form.values),
        (queries, keys, values),
        core.widths,
        strict=True,
    ):
        if width:
            _set_generator(generator, projection, each, form.heads)
    for parameter, each, errors in (
        (core.expand_queries, queries, fit.query_error),
        (core.expand_keys, keys, fit.key_error),
        (core.expand_values, values, fit.value_error),
    ):
        if each is not None:
            errors.extend(each.error.sqrt().tolist())
            if parameter is not None:
                parameter.copy_(each.expand)


def _set_generator(
    generator: Generator, projection: Projection, factors: SeparableFactors | None, heads: int
) -> None:
    """Write one projection, factorised or as it is, into what generates it."""
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
    mixing, spreading, channels = generator
    mixing.weight[channels, :, 0, 0] = pointwise
    if mixing.bias is not None:
        mixing.bias[channels] = 0.0 if pointwise_bias is None else pointwise_bias
    if spreading is not None and depthwise is not None:
        spreading.weight[channels, 0] = depthwise
        if spreading.bias is not None:
            spreading.bias[channels] = 0.0 if depthwise_bias is None else depthwise_bias


def _fit_corrections(
    teacher: nn.Module,
    layers: Mapping[str, AttentionLayer],
    candidates: Mapping[str, Sequence[Candidate]],
    wanted: Mapping[str, LogitSamples],
    batches: Sequence[Inputs],
) -> None:
    """Second pass: scales, static bias and guide of every layer with approximate logits."""
    own: dict[str, list[list[Tensor]]] = {name: [[] for _ in each] for name, each in candidates.items()}

    def see(name: str, args: tuple[Any, ...]) -> None:
        inputs = layers[name].reader.attention_inputs(args)
        for candidate, logits in zip(candidates[name], own[name], strict=True):
            logits.append(candidate.core.input_logits(*inputs).cpu())

    with _observe({name: layers[name] for name in candidates}, see):
        _run(teacher, batches, "logit corrections")
    for name in progress(candidates, what="fitting corrections", unit="layer"):
        target, features = torch.stack(wanted[name].logits), torch.stack(wanted[name].features)
        for candidate, logits in zip(candidates[name], own.pop(name), strict=True):
            with naming(name):
                set_corrections(candidate.core, target, torch.cat(logits), features, candidate.fit)
