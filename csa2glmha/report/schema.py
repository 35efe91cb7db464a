"""What report.json holds, as types.

A change of a field's name or meaning makes a new :data:`SCHEMA`, with a step in
:mod:`csa2glmha.report.stored` that brings older reports up to it.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, JsonValue

from csa2glmha.metrics.logits import KL, TOP1
from csa2glmha.metrics.outputs import SCALES, Name, Scale
from csa2glmha.report.part import Count, Figure, Part
from csa2glmha.report.schema_files import Onnx, Timing
from csa2glmha.report.schema_search import AgainstTeacher, Baseline, Metric, Pareto, Search

SCHEMA = 2

#: What outputs are compared with.
Against = Literal["teacher", "ground_truth"]


class Teacher(Part):
    """The checkpoint that was converted.

    Attributes:
        weights: which of the file's; "" where it leaves no choice.
        source: address on the Hugging Face Hub, if it came from there.
    """

    file: str
    sha256: str
    weights: str = ""
    notes: tuple[str, ...] = ()
    source: str | None = None
    architecture: str
    hyperparameters: dict[str, JsonValue]


class Cost(Part):
    """What a network takes at the report's input size."""

    params: Count
    constants: Count = 0
    macs: Count
    conv_macs: Count | None = None
    flops: Count
    uncounted: dict[str, int] = Field(default_factory=dict)


class Costs(Part):
    """Teacher and student; shapes are B, C, H, W, one for each input.

    Attributes:
        by_values: what the networks run depends on their input, and was counted on one.
    """

    input_shapes: tuple[tuple[int, ...], ...] = ()
    input_shapes_after: tuple[tuple[int, ...], ...] = ()
    by_values: bool = False
    before: Cost
    after: Cost


class Layer(Part):
    """One attention layer: its form, its cost, and how well it was initialised (relative errors per head)."""

    name: str
    heads: int
    head_channels: int
    rank_q: int
    rank_k: int
    rank_v: int
    rank_pos: int | None
    attention: str = "expanded"
    route: str
    macs_before: Count
    macs_after: Count
    params_before: Count
    params_after: Count
    key_error: tuple[Figure, ...]
    row_error: tuple[Figure, ...]
    value_error: tuple[Figure, ...]
    branch_error: tuple[Figure, ...]
    logit_error: Figure
    guide_explained: Figure


class FeedForwardLayer(Part):
    """One feed-forward network: its hidden channels, its cost, and the share of its output that was lost."""

    name: str
    hidden_before: int
    hidden_after: int
    macs_before: Count
    macs_after: Count
    params_before: Count
    params_after: Count
    error: Figure


class SkippedLayer(Part):
    """An attention layer that the student goes without, and what it cost."""

    name: str
    macs_before: Count
    params_before: Count


class RefitLayer(Part):
    """How far a layer's sum was from the teacher's, as a share of what the layer was to add."""

    name: str
    before: Figure
    after: Figure


class RefitResult(Part):
    """The refit of output projections; agreement with the teacher, held out. Not kept: it was worse."""

    kept: bool
    metric: Metric
    before: Figure
    after: Figure
    layers: tuple[RefitLayer, ...]


class LayerSpectrum(Part):
    """The attention of one layer of the teacher, see :func:`csa2glmha.analysis.measure.analyse_layer`."""

    name: str
    images: int | None = None
    channels: int
    heads: int
    head_channels: int
    temperature: tuple[Figure, ...]
    static_share: tuple[Figure, ...]
    uniform_share: tuple[Figure, ...] | None = None
    pattern_share: tuple[Figure, ...] | None = None
    varying_share: tuple[Figure, ...] | None = None
    entropy: tuple[Figure, ...] | None = None
    largest: tuple[Figure, ...] | None = None
    cumulative: tuple[tuple[float, ...], ...]
    key_error: tuple[Figure, ...]
    key_error_heads: tuple[tuple[Figure, ...], ...] | None = None
    value_error: tuple[Figure, ...]
    value_error_heads: tuple[tuple[Figure, ...], ...] | None = None


class Analysis(Part):
    """The spectra of the teacher's attention."""

    images: int
    layers: tuple[LayerSpectrum, ...]


class DataUsed(Part):
    """What was learnt from and measured on.

    Attributes:
        held_out_sha256: see :func:`csa2glmha.data.identity.describe_images`.
        outputs: what the networks make; earlier reports, which are of images and spectra, do not say.
        channel: what PSNR and SSIM are of, "rgb", "y" or "gray"; None where the report does not say.
    """

    source: str
    training_images: int
    held_out_images: int
    held_out_names: tuple[str, ...] | None = None
    held_out_sha256: str | None = None
    evaluated_images: int
    evaluated_on: str
    degradation: str | None
    outputs: Name | None = None
    spectral: bool = False
    stretched: bool = False
    channel: str | None
    notes: tuple[str, ...] = ()


class ModelQuality(Part):
    """Means over the held-out images by metric; of spectra, also by band."""

    ground_truth: dict[str, Figure] | None = None
    teacher: dict[str, Figure] | None = None
    outputs_out_of_range: int | None = None
    ground_truth_bands: dict[str, tuple[Figure, ...]] | None = None
    teacher_bands: dict[str, tuple[Figure, ...]] | None = None


class DistillStage(Part):
    """A stage of the distillation; its metric before and after it."""

    stage: str
    steps: int
    seconds: float
    before: Figure
    after: Figure


class CurvePoint(Part):
    """One evaluation during the distillation: PSNR or KL divergence; the loss is in the stage's own units."""

    stage: str
    step: int
    psnr: Figure = None
    kl: Figure = None
    loss: Figure = None
    minutes: float

    @property
    def figure(self) -> Figure:
        """The one of the two that is known."""
        return self.kl if self.psnr is None else self.psnr


class Distillation(Part):
    """As :class:`csa2glmha.distill.result.DistillResult`, and settings that have no option.

    Attributes:
        metric: "psnr" in dB, or of logits "kl" in nats: what before, after and the curve are; earlier
            reports do not say "psnr".
    """

    metric: Metric | None = None

    layer_share: float | None = None
    layer_rate: float | None = None
    warmup: float | None = None
    steps: int
    seconds: float
    before: Figure
    after: Figure
    best_step: int
    skipped: int = 0
    stopped: str = ""
    stages: tuple[DistillStage, ...]
    curve: tuple[CurvePoint, ...]

    @property
    def scale(self) -> Scale:
        """How the metric is told."""
        return SCALES[self.metric or "psnr"]


class Spectrum(Part):
    """Values of all bands at one pixel."""

    row: int
    column: int
    teacher: tuple[Figure, ...]
    student: tuple[Figure, ...]
    ground_truth: tuple[Figure, ...] | None = None


class ImageFigures(Part):
    """One image of the gallery; see :func:`csa2glmha.metrics.comparisons.compare_image`."""

    name: str
    psnr_to_teacher: Figure
    teacher_psnr: Figure = None
    student_psnr: Figure = None
    shown_height: int
    shown_width: int
    spectra: tuple[Spectrum, ...] | None = None


class Comparisons(Part):
    """The gallery; its pictures are in report.html."""

    difference_gain: Count
    webp_quality: int | str | None = None
    images: tuple[ImageFigures, ...]


class Report(Part):
    """All that a conversion measured; what it did not is None.

    Attributes:
        onnx_for: files for further runtimes, by the name that `--for` has.
        onnx_missing: why there is none for one that was asked for, likewise.
    """

    version: Literal[2] = Field(default=2, alias="schema")
    tool: str
    versions: dict[str, str]
    device: str
    threads: int
    seed: int
    teacher: Teacher
    options: dict[str, JsonValue]
    input_size: tuple[int, int]
    complexity: Costs
    layers: tuple[Layer, ...]
    feed_forwards: tuple[FeedForwardLayer, ...] | None = None
    skipped: tuple[SkippedLayer, ...] | None = None
    refit: RefitResult | None = None
    seconds: dict[str, float]
    analysis: Analysis | None = None
    data: DataUsed | None = None
    baselines: tuple[Baseline, ...] | None = None
    search: Search | None = None
    quality: dict[str, ModelQuality] | None = None
    distillation: Distillation | None = None
    onnx: Onnx | None = None
    onnx_for: dict[str, Onnx] | None = None
    onnx_missing: dict[str, str] | None = None
    latency_ms: dict[str, Timing] | None = None
    latency_missing: str | None = None
    comparisons: Comparisons | None = None
    pareto: Pareto | None = None

    def figure(self, network: str, against: Against, metric: str) -> float | None:
        """A metric of "teacher", "initialisation" or "student"; None where it was not measured."""
        quality = (self.quality or {}).get(network)
        if quality is None:
            return None
        return ((quality.ground_truth if against == "ground_truth" else quality.teacher) or {}).get(metric)

    def bands(self, network: str, against: Against, metric: str) -> tuple[Figure, ...]:
        """The same for every band of spectra; empty where it was not measured."""
        quality = (self.quality or {}).get(network)
        if quality is None:
            return ()
        return (
            (quality.ground_truth_bands if against == "ground_truth" else quality.teacher_bands) or {}
        ).get(metric, ())

    @property
    def psnr_drop(self) -> float | None:
        """The student's PSNR to the ground truth minus the teacher's; None where one is not finite."""
        return self.psnr_drop_of("student")

    def psnr_drop_of(self, network: str) -> float | None:
        """The same of the student or its initialisation."""
        return self.change_of(network, "psnr")

    def change_of(self, network: str, metric: str) -> float | None:
        """The same of any metric against the ground truth."""
        own, other = (self.figure(name, "ground_truth", metric) for name in ("teacher", network))
        if own is None or other is None or not math.isfinite(own) or not math.isfinite(other):
            return None
        return other - own

    def against_teacher(self, network: str) -> AgainstTeacher:
        """How "initialisation" or "student" compares with the teacher."""
        return AgainstTeacher(
            psnr_to_teacher=self.figure(network, "teacher", "psnr"),
            kl_to_teacher=self.figure(network, "teacher", KL),
            psnr_drop=self.psnr_drop_of(network),
            top1_to_teacher=self.figure(network, "teacher", TOP1),
            top1_change=self.change_of(network, TOP1),
        )

    @property
    def classifies(self) -> bool:
        """The networks make logits of classes."""
        return self.data is not None and self.data.outputs == "logits"

    @property
    def knows_ground_truth(self) -> bool:
        """There was a ground truth to compare with."""
        return bool(self.quality and self.quality["teacher"].ground_truth)
