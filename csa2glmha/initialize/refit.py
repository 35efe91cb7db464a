"""The anchored refit of a student: one walk through teacher and student side by side.

All calibration inputs go through both networks at once, each in a call that pauses where a layer's output is
added to the stream. There the layer is refitted to the teacher's sum from the student's own features, and
the student goes on with the new weights: what a layer cannot repair, later ones see. So all layers together
cost one pass of each network. See :mod:`csa2glmha.feedforward.refit` for the formula.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from csa2glmha.attention.layout import Layout
from csa2glmha.core.hooks import removed_after
from csa2glmha.core.progress import manual_progress
from csa2glmha.data.batches import Inputs
from csa2glmha.feedforward.refit import AnchoredMoments
from csa2glmha.inference.threads import PausingCall, ended_together
from csa2glmha.initialize.outputs import Output, as_output, rows_of
from csa2glmha.initialize.overflow import naming
from csa2glmha.initialize.residual import ResidualSums, expecting, residual_order
from csa2glmha.networks import run
from csa2glmha.networks.foreign import users_own


@dataclass(frozen=True)
class RefitError:
    """How far a layer's sum was from the teacher's, as a share of what the layer was to add.

    Attributes:
        before, after: with the weights that it had, and with those it has now.
    """

    before: float
    after: float


@dataclass(frozen=True)
class Refitted:
    """What came of a refit.

    Attributes:
        kept: the student has the new weights; otherwise they were worse.
        metric: what agreement with the teacher on held-out images is told in, "psnr" or "kl".
        before, after: the figures.
        layers: how each layer fits, in order.
    """

    kept: bool
    metric: Literal["psnr", "kl"]
    before: float
    after: float
    layers: Mapping[str, RefitError]


@dataclass(frozen=True)
class _Sum:
    """Where a pass waits: a layer's features (none of the teacher's), the stream, and what it adds."""

    layer: str
    features: Tensor | None
    stream: Tensor
    output: Tensor


_Pass = PausingCall[_Sum, Tensor, Tensor]


class _RefitWalk:
    """A network's passes, one for each batch; one of them runs at a time."""

    def __init__(
        self,
        model: nn.Module,
        modules: Mapping[str, nn.Module],
        layouts: Mapping[str, Layout],
        batches: Sequence[Inputs],
        order: Mapping[str, bool],
    ) -> None:
        self.model, self.layouts = model, layouts
        self.modules = {name: modules[name] for name in order}
        self.alone = frozenset(name for name, added in order.items() if not added)
        self.passes: list[_Pass] = []
        for inputs in batches:
            self.passes.append(PausingCall(partial(self._follow, len(self.passes), inputs)))
        self._sums: dict[int, ResidualSums] = {}
        self._features: dict[tuple[int, str], Tensor] = {}
        self._running = 0

    def proceed(self, index: int, answer: Tensor | None) -> _Sum | None:
        """Let one pass go on to its next sum."""
        self._running = index
        return self.passes[index].proceed(answer)

    def keep_features(self, layer: str, features: Tensor) -> None:
        """What a layer multiplies with its weights."""
        self._features[self._running, layer] = features

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Passes wait at sums as long as the block lasts, and all have ended behind it."""
        with (
            expecting(self.modules, lambda: self._sums[self._running]),
            ended_together(self.passes),
        ):
            yield

    def _follow(self, index: int, inputs: Inputs) -> Tensor:
        self._sums[index] = ResidualSums(partial(self._at_sum, index), self.alone)
        with torch.no_grad(), self._sums[index]:
            return run(self.model, inputs)

    def _at_sum(self, index: int, layer: str, stream: Tensor, output: Tensor) -> Tensor | None:
        features = self._features.pop((index, layer), None)
        weight = self.passes[index].ask(_Sum(layer, features, stream, output))
        if features is None:
            return None
        # The weight's old part of the output is in ``output``: the answer is what is to be added to it.
        return stream + output + as_output(weight @ features, self.layouts[layer], output)


def refit(
    teacher: nn.Module, student: nn.Module, layers: Mapping[str, Output], batches: Sequence[Inputs]
) -> dict[str, RefitError]:
    """Refit the last projection of layers of a student, in place and in order.

    A layer's sum is what its output is added to a stream in. Of one whose output is not added to anything, it
    is that output. Layers that run more than once, or not alike in both networks, stay as they are.

    Args:
        teacher, student: in eval mode, with the same names for layers.
        layers: of the student, by name.
        batches: calibration inputs, a few images each.

    Returns:
        For each layer that was refitted, in order, how it fits.
    """
    ours = {name: layer.module for name, layer in layers.items()}
    theirs = {name: users_own(teacher).get_submodule(name) for name in layers}
    order = _common_order(teacher, theirs, student, ours, batches)
    layouts = {name: layers[name].layout for name in order}
    walk = _RefitWalk(student, ours, layouts, batches, order)
    guide = _RefitWalk(teacher, theirs, layouts, batches, order)
    fits: dict[str, RefitError] = {}
    nothing = torch.zeros(())
    update: Tensor | None = None
    with (
        _features(walk, {name: layers[name] for name in order}),
        guide.watched(),
        walk.watched(),
        manual_progress(what="refitting", unit="layer", total=len(order)) as bar,
    ):
        for name in order:
            weight = layers[name].weight.clone()
            moments = _moments_at(name, walk, guide, update, nothing)
            with naming(name):
                change = moments.change()
            before, after = moments.errors(weight, change)
            fits[name] = RefitError(before**0.5, after**0.5)
            layers[name].set_weight(weight + change.to(weight))
            update = layers[name].weight - weight
            bar.update()
        # Behind the last sum nothing is needed any more: the passes end with the block.
    return fits


def _common_order(
    teacher: nn.Module,
    theirs: Mapping[str, nn.Module],
    student: nn.Module,
    ours: Mapping[str, nn.Module],
    batches: Sequence[Inputs],
) -> dict[str, bool]:
    """The order of the sums that both networks have, and whether there is a stream."""
    small = tuple(each[:1] for each in batches[0])
    order = residual_order(ours, lambda: run(student, small))
    other = residual_order(theirs, lambda: run(teacher, small))
    order = {name: added for name, added in order.items() if other.get(name) == added}
    if [name for name in other if name in order] != list(order):
        raise ValueError("teacher and student run their layers in another order")
    return order


def _moments_at(
    name: str, walk: _RefitWalk, guide: _RefitWalk, update: Tensor | None, nothing: Tensor
) -> AnchoredMoments:
    """Bring all passes of both networks to a layer's sum."""
    moments = AnchoredMoments()
    for index in range(len(walk.passes)):
        goal = guide.proceed(index, None if update is None else nothing)
        seen = walk.proceed(index, update)
        assert goal is not None and seen is not None and goal.layer == seen.layer == name
        assert seen.features is not None
        target, own = (rows_of(each.stream + each.output, walk.layouts[name]) for each in (goal, seen))
        moments.add(seen.features, target - own)
    return moments


@contextlib.contextmanager
def _features(walk: _RefitWalk, layers: Mapping[str, Output]) -> Iterator[None]:
    """Keep what goes into the projections."""
    handles = [layer.watch(partial(walk.keep_features, name)) for name, layer in layers.items()]
    with removed_after(handles):
        yield
