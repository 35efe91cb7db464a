"""The parts of report.json on rank searches, other methods and sweeps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from csa2glmha.metrics.outputs import SCALES, Scale
from csa2glmha.report.part import Count, Figure, Part

Metric = Literal["psnr", "kl"]


class BudgetAsked(Part):
    """What a search was asked for; absolute: in units of its own, otherwise a share of the teacher's."""

    kind: str
    target: float
    absolute: bool


class SearchTrial(Part):
    """A student that a search made: its error and loss of PSNR, or its time, as a share of the teacher's."""

    error: float | None = None
    drop: Figure = None
    predicted: float | None = None
    measured: float | None = None


class Reached(Part):
    """What the student that was found comes to."""

    macs: Count
    params: Count
    drop: Figure = None
    time_share: float | None = None
    milliseconds: float | None = None
    tried: tuple[SearchTrial, ...] | None = None


class PredictedPoint(Part):
    """What ranks are predicted to lose: their error to the teacher, and its PSNR in dB or KL divergence."""

    rank: int
    macs: Count
    params: Count
    error: float
    psnr_to_teacher: Figure
    kl_to_teacher: Figure = None

    @property
    def to_teacher(self) -> Figure:
        """PSNR in dB, or KL divergence in nats."""
        return self.psnr_to_teacher if self.kl_to_teacher is None else self.kl_to_teacher


class Predicted(Part):
    """Of the student that was found; and of one rank everywhere and ranks found, at the same costs."""

    error: float | None = None
    psnr_to_teacher: Figure
    kl_to_teacher: Figure = None
    macs: Count | None = None
    psnr_drop: Figure = None
    uniform: tuple[PredictedPoint, ...] = ()
    searched: tuple[PredictedPoint, ...] = ()

    @property
    def to_teacher(self) -> Figure:
        """PSNR in dB, or KL divergence in nats."""
        return self.psnr_to_teacher if self.kl_to_teacher is None else self.kl_to_teacher


class Agreement(Part):
    """How well closed-form errors foretell the measured ones: rank correlations, and the typical factor."""

    within_layers: Figure
    overall: Figure
    typical_factor: Figure


class LayerChoice(Part):
    """One part of one layer at one rank or width, all else exact; PSNR is None where there is no error.

    Attributes:
        side: "logits", "values", "hidden" (channels of a feed-forward network) or "layer" (skipped or not).
        ranks: what is chosen, in words.
        width: hidden channels; 0: the layer is skipped.
    """

    layer: str
    side: str
    ranks: str
    rank_q: int | None
    rank_k: int | None
    rank_v: int | None
    width: int | None = None
    error: float
    psnr_to_teacher: Figure
    kl_to_teacher: Figure = None
    predicted: Figure

    @property
    def to_teacher(self) -> Figure:
        """PSNR in dB, or KL divergence in nats."""
        return self.psnr_to_teacher if self.kl_to_teacher is None else self.kl_to_teacher


class SearchChoice(LayerChoice):
    """The same, with what it saves, and whether it was picked."""

    macs_saved: Count
    params_saved: Count
    picked: bool


class Sensitivity(Part):
    """What each layer's ranks cost in agreement with the teacher, by a metric of :data:`SCALES`."""

    metric: Metric | None = None

    crops: int
    choices: tuple[LayerChoice, ...]
    agreement: dict[str, Agreement]

    @property
    def scale(self) -> Scale:
        """How the metric is told."""
        return SCALES[self.metric or "psnr"]


class Search(Part):
    """A rank search.

    Attributes:
        metric: of errors to the teacher, one of :data:`SCALES`; earlier reports do not say "psnr".
        gap: to the least error that these ranks allow, as a share of it; None where that is not known.
    """

    metric: Metric | None = None
    budget: BudgetAsked
    reached: Reached
    predicted: Predicted
    gap: Figure
    optimality: str
    agreement: dict[str, Agreement] = Field(default_factory=dict)
    choices: tuple[SearchChoice, ...] = ()

    @property
    def scale(self) -> Scale:
        """How the metric is told."""
        return SCALES[self.metric or "psnr"]


class AgainstTeacher(Part):
    """How a student compares with its teacher.

    Attributes:
        psnr_to_teacher: in dB.
        psnr_drop: change of the PSNR to the ground truth, in dB.
        kl_to_teacher, top1_to_teacher: of classifiers, in nats and as a share of the images.
        top1_change: likewise, of the accuracy, as a share of the images.
    """

    psnr_to_teacher: Figure
    kl_to_teacher: Figure = None
    psnr_drop: Figure
    top1_to_teacher: Figure = None
    top1_change: Figure = None

    @property
    def to_teacher(self) -> Figure:
        """PSNR in dB, or KL divergence in nats."""
        return self.psnr_to_teacher if self.kl_to_teacher is None else self.kl_to_teacher


class Baseline(Part):
    """Another method's student at about the same MACs, before and after the same distillation.

    Attributes:
        rank: of keys and values, where the method has one.
        ffn: the share of the hidden channels of feed-forward networks that a pruning method keeps.
        macs, params: of a method that cannot go so far, those of its smallest student, which was not made.
    """

    name: str
    description: str
    rank: int | None = None
    ffn: Figure = None
    macs: Count
    params: Count
    before: AgainstTeacher | None
    after: AgainstTeacher | None


class ParetoPoint(AgainstTeacher):
    """A student of a sweep, or its teacher.

    Attributes:
        kind: "teacher", "uniform" (one rank), "auto" (ranks that were searched for) or "baseline".
        ffn: the share of the hidden channels of feed-forward networks that it keeps; None: all of them, or
            those that a search chose. Of a search for ranks alone it is 1.
        method: of a baseline, its name.
        time_ratio: over the teacher's time.
        folder: of its results, within the sweep's.
    """

    label: str
    kind: str
    ffn: Figure = None
    method: str | None = None
    macs: Count
    macs_ratio: float
    params: Count
    time_ratio: float | None
    folder: str | None = None


class Pareto(Part):
    """The points of the sweep that a student is of."""

    points: tuple[ParetoPoint, ...]


class Sweep(Part):
    """What sweep.json holds."""

    checkpoint: str
    sha256: str
    input_size: tuple[int, int]
    points: tuple[ParetoPoint, ...]
    latency_missing: str | None = None
