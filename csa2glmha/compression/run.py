"""A compression under way: what it was given, and what its stages have found so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from csa2glmha.compression.pictured import Pictured
from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.errors import UsageError
from csa2glmha.core.stages import Stages
from csa2glmha.data.batches import Data, Example, Inputs
from csa2glmha.distill import DistillResult, DistillSettings, State, StateFolder
from csa2glmha.initialize import LayerFit
from csa2glmha.initialize.configure import plan_layers, plan_widths
from csa2glmha.initialize.refit import Refitted
from csa2glmha.metrics.comparisons import Comparison
from csa2glmha.metrics.complexity import Complexity
from csa2glmha.metrics.evaluate import Evaluation
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import AttentionLayer
from csa2glmha.reading.sizes import Sizes
from csa2glmha.search.plan import SizeSearch
from csa2glmha.search.sensitivity import Known, SensitivityCache

ModelT = TypeVar("ModelT", bound=nn.Module)
Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Plan:
    """What a conversion is to make, as far as model and options tell.

    Attributes:
        sizes: of the student, as far as they do not follow from measurements.
        exact: nothing is approximated.
        distilled: the student is trained.
    """

    sizes: Sizes
    exact: bool
    distilled: bool

    @classmethod
    def of(cls, model: nn.Module, layers: dict[str, AttentionLayer], options: ConvertOptions) -> Plan:
        """The plan for a network and its attention layers.

        Raises:
            UsageError: there are no layers of these ranks or none of them gets cheaper, or there are no
                feed-forward networks to narrow.
        """
        planned = plan_layers(layers, options.ranks, options.attention)
        widths = plan_widths(feed_forwards(model), options.ffn_share)
        if not (planned or widths or options.measured):
            raise UsageError(
                f"no layer of this model gets cheaper at ranks {options.ranks}, since only the maps of its "
                f"{len(layers)} layers would be made anew; give a lower rank"
            )
        sizes = Sizes({} if options.measured else planned, widths)
        exact = sizes.exact and not options.measured
        return cls(sizes, exact, not exact and options.distill and options.distill_steps != 0)


@dataclass(kw_only=True)
class Run(Generic[ModelT]):
    """What the stages of a compression share.

    Attributes:
        teacher: in eval mode, on the device; it is not trained.
        options, data, plan: what is to be made, and of what.
        device: to compute on.
        examples: held-out inputs to evaluate on.
        shapes: of a network's inputs, B, C, H, W each, that operations are counted for.
        finish: what is done to a student before it is used.
        search, cache: for ranks, and of its measurements; None where ranks are given.
        settings: of the distillation; None: those of the options.
        states, state, log: of the training: where to keep states, the one to resume from, the record.
        sizes: of the student.
        inputs: of the calibration; None where nothing is approximated.
        seconds: that the stages took.
        known, student, fits, width_errors, refitted, found, distillation: what the stages made.
        initial: the student before distillation; None where there is none.
        quality, before, after: what was measured.
        comparisons, pictured: what a few examples show; none where inputs or outputs are no images.
    """

    teacher: ModelT
    options: ConvertOptions
    data: Data
    plan: Plan
    device: torch.device
    examples: list[Example]
    shapes: Callable[[ModelT], Shapes]
    finish: Callable[[ModelT], ModelT]
    search: SizeSearch[ModelT] | None = None
    cache: SensitivityCache | None = None
    settings: DistillSettings | None = None
    states: StateFolder | None = None
    state: State | None = None
    log: Path | None = None

    sizes: Sizes = field(init=False)
    inputs: list[Inputs] | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    known: Known | None = None
    student: ModelT = field(init=False)
    fits: dict[str, LayerFit] = field(default_factory=dict)
    width_errors: dict[str, float] = field(default_factory=dict)
    refitted: Refitted | None = None
    found: dict[str, Any] | None = None
    initial: ModelT | None = None
    distillation: DistillResult | None = None
    quality: dict[str, Evaluation] = field(default_factory=dict)
    before: Complexity = field(init=False)
    after: Complexity = field(init=False)
    comparisons: list[Comparison] = field(default_factory=list)
    pictured: Pictured | None = None

    def __post_init__(self) -> None:
        self.sizes = self.plan.sizes

    @property
    def approximates(self) -> bool:
        """Something is approximated, now that all sizes are known."""
        return not self.sizes.exact

    @property
    def trains(self) -> bool:
        """The student is trained: it is asked for, and something is approximated."""
        return self.plan.distilled and self.approximates


RunT = TypeVar("RunT", bound=Run[Any], contravariant=True)


class Stage(Protocol[RunT]):
    """A part of a compression.

    Attributes:
        name: out of :data:`csa2glmha.core.stages.CONVERSION`; "": it is not told of and not timed.
    """

    @property
    def name(self) -> str: ...

    def planned(self, run: RunT) -> bool:
        """Whether it is counted among the stages to come."""
        ...

    def wanted(self, run: RunT) -> bool:
        """Whether it is to be done, now that those before it are."""
        ...

    def __call__(self, run: RunT) -> None:
        """Do it."""
        ...


class Always(Generic[RunT]):
    """A stage that no option leaves out."""

    name = ""

    def planned(self, run: RunT) -> bool:
        """As :meth:`Stage.planned`."""
        return True

    def wanted(self, run: RunT) -> bool:
        """As :meth:`Stage.wanted`."""
        return self.planned(run)


def carry_out(run: RunT, stages: Sequence[Stage[RunT]]) -> None:
    """All stages in their order; those with names are told of and timed."""
    told = Stages([stage.name for stage in stages if stage.name and stage.planned(run)], run.seconds)
    for stage in stages:
        if not stage.wanted(run):
            continue
        if stage.name:
            with told(stage.name):
                stage(run)
        else:
            stage(run)
