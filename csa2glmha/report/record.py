"""What a conversion measured, as its report."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnxruntime
import torch

from csa2glmha.analysis.measure import join
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.bench.compare import FileTimings
from csa2glmha.checkpoint.student import LoadedModel
from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.hub import source_of
from csa2glmha.core.version import __version__
from csa2glmha.data.batches import Data
from csa2glmha.distill.job import settings_without_option
from csa2glmha.distill.result import DistillResult
from csa2glmha.distill.settings import DistillSettings
from csa2glmha.export.onnx import ExportReport
from csa2glmha.initialize import LayerFit
from csa2glmha.initialize.refit import Refitted
from csa2glmha.metrics.comparisons import Comparison
from csa2glmha.metrics.complexity import Complexity
from csa2glmha.metrics.evaluate import Evaluation
from csa2glmha.metrics.pictures import DIFFERENCE_GAIN
from csa2glmha.metrics.quality import CHANNEL_NAMES
from csa2glmha.reading.sizes import Sizes
from csa2glmha.report.html.pictures import all_pictures, choose_quality
from csa2glmha.report.record_files import onnx_part, timings_part
from csa2glmha.report.schema import (
    Analysis,
    Comparisons,
    Cost,
    Costs,
    DataUsed,
    Distillation,
    FeedForwardLayer,
    ImageFigures,
    Layer,
    ModelQuality,
    RefitLayer,
    RefitResult,
    Report,
    SkippedLayer,
    Teacher,
)
from csa2glmha.report.schema_search import Baseline, Search


@dataclass(frozen=True)
class Width:
    """A feed-forward network of teacher and student.

    Attributes:
        before, after: hidden channels.
        error: that comes of it.
        modules: names of those that it is made of.
    """

    before: int
    after: int
    error: float
    modules: tuple[str, ...]


@dataclass
class Measurements:
    """Everything that the report is made of."""

    teacher: Teacher
    options: ConvertOptions
    data: Data | None
    sizes: Sizes
    fits: dict[str, LayerFit]
    widths: Mapping[str, Width]
    refitted: Refitted | None
    before: Complexity
    after: Complexity
    seconds: dict[str, float]
    frame: tuple[int, int]
    distillation: DistillResult | None = None
    settings: DistillSettings | None = None
    quality: dict[str, Evaluation] | None = None
    images: dict[str, Any] = field(default_factory=dict)
    export: ExportReport | None = None
    exports: Mapping[str, ExportReport] = field(default_factory=dict)
    exports_missing: Mapping[str, str] = field(default_factory=dict)
    latency: FileTimings | None = None
    latency_missing: str | None = None
    device: str = "cpu"
    channels: int = 0
    search: Mapping[str, object] | None = None
    baselines: Sequence[Mapping[str, object]] | None = None
    comparisons: list[Comparison] = field(default_factory=list)


def build_report(measured: Measurements) -> Report:
    """Everything measured."""
    return Report(
        tool=f"csa2glmha {__version__}",
        versions={
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        device=measured.device,
        threads=torch.get_num_threads(),
        seed=measured.options.seed,
        teacher=measured.teacher,
        options=measured.options.model_dump(mode="json", exclude={"overwrite"}),
        input_size=measured.frame,
        complexity=Costs(
            input_shapes=measured.before.input_shapes,
            input_shapes_after=measured.after.input_shapes,
            by_values=measured.before.by_values or measured.after.by_values,
            before=_cost(measured.before),
            after=_cost(measured.after),
        ),
        layers=tuple(_layer(name, config, measured) for name, config in measured.sizes.configs.items()),
        skipped=_skipped(measured),
        feed_forwards=_feed_forwards(measured),
        refit=_refit(measured.refitted),
        seconds={stage: round(value, 1) for stage, value in measured.seconds.items()},
        analysis=_analysis(measured.fits),
        data=None if measured.data is None else _data(measured.data, measured),
        baselines=_baselines(measured.baselines),
        search=None if measured.search is None else Search.model_validate(measured.search),
        quality=None if measured.quality is None else _quality(measured.quality),
        distillation=_distillation(measured),
        onnx=None if measured.export is None else onnx_part(measured.export),
        onnx_for={name: onnx_part(each) for name, each in measured.exports.items()} or None,
        onnx_missing=dict(measured.exports_missing) or None,
        latency_ms=None if measured.latency is None else timings_part(measured.latency),
        latency_missing=measured.latency_missing,
        comparisons=comparisons_of(measured.comparisons) if measured.comparisons else None,
    )


def teacher_of(teacher: LoadedModel) -> Teacher:
    """What the report says of a teacher that came from a file."""
    checkpoint, model = teacher.checkpoint, teacher.model
    return Teacher(
        file=checkpoint.path.name,
        sha256=checkpoint.sha256,
        weights=checkpoint.weights,
        notes=tuple(checkpoint.notes),
        source=source_of(checkpoint.path),
        architecture=model.architecture,
        hyperparameters=model.hyperparameters,
    )


def _cost(complexity: Complexity) -> Cost:
    return Cost(
        params=complexity.params,
        constants=complexity.constants,
        macs=complexity.macs,
        conv_macs=complexity.conv_macs,
        flops=complexity.flops,
        uncounted=complexity.uncounted,
    )


def _layer(name: str, config: GLMHAConfig, measured: Measurements) -> Layer:
    before, after = measured.before.modules[name], measured.after.modules[name]
    fit = measured.fits[name]
    return Layer(
        name=name,
        heads=config.heads,
        head_channels=config.head_channels,
        rank_q=config.rank_q,
        rank_k=config.rank_k,
        rank_v=config.rank_v,
        rank_pos=config.rank_pos,
        attention=config.attention,
        route=config.route,
        macs_before=before.macs,
        macs_after=after.macs,
        params_before=before.params,
        params_after=after.params,
        key_error=tuple(fit.key_error),
        row_error=tuple(fit.query_error),
        value_error=tuple(fit.value_error),
        branch_error=tuple(fit.branch_error),
        logit_error=fit.logit_error,
        guide_explained=fit.guide_explained,
    )


def _feed_forwards(measured: Measurements) -> tuple[FeedForwardLayer, ...] | None:
    found = []
    for name, width in measured.widths.items():
        params_before, macs_before = measured.before.params_and_macs(width.modules)
        params_after, macs_after = measured.after.params_and_macs(width.modules)
        found.append(
            FeedForwardLayer(
                name=name,
                hidden_before=width.before,
                hidden_after=width.after,
                macs_before=macs_before,
                macs_after=macs_after,
                params_before=params_before,
                params_after=params_after,
                error=width.error,
            )
        )
    return tuple(found) or None


def _skipped(measured: Measurements) -> tuple[SkippedLayer, ...] | None:
    """The attention layers that the student goes without; of the feed-forward networks their widths tell."""
    before = measured.before.modules
    found = tuple(
        SkippedLayer(name=name, macs_before=before[name].macs, params_before=before[name].params)
        for name in measured.sizes.skipped
        if name not in measured.widths
    )
    return found or None


def _refit(refitted: Refitted | None) -> RefitResult | None:
    if refitted is None:
        return None
    layers = [
        RefitLayer(name=name, before=fit.before, after=fit.after) for name, fit in refitted.layers.items()
    ]
    return RefitResult(
        kept=refitted.kept,
        metric=refitted.metric,
        before=refitted.before,
        after=refitted.after,
        layers=tuple(layers),
    )


def _analysis(fits: dict[str, LayerFit]) -> Analysis | None:
    analyses = [fit.analysis for fit in fits.values() if fit.analysis is not None]
    return Analysis.model_validate(join(analyses)) if analyses else None


def _evaluated_on(data: Data, height: int, width: int) -> str:
    if data.outputs.name == "logits":
        return f"held-out images, resized and cut to {height} x {width} pixels"
    return f"central {height} x {width} pixels of held-out images, smaller ones whole"


def _data(data: Data, measured: Measurements) -> DataUsed:
    height, width = measured.frame
    return DataUsed(
        source=data.source,
        **measured.images,
        evaluated_images=len(measured.images["held_out_names"]),
        evaluated_on=_evaluated_on(data, height, width),
        degradation=data.degradation,
        outputs=data.outputs.name,
        spectral=data.spectral,
        stretched=data.stretched,
        channel=None if data.outputs.name != "images" else CHANNEL_NAMES.get(measured.channels),
        notes=tuple(data.notes),
    )


def _baselines(found: Sequence[Mapping[str, object]] | None) -> tuple[Baseline, ...] | None:
    return None if found is None else tuple(Baseline.model_validate(each) for each in found)


def _quality(quality: dict[str, Evaluation]) -> dict[str, ModelQuality]:
    return {name: ModelQuality.model_validate(each.to_json()) for name, each in quality.items()}


def _distillation(measured: Measurements) -> Distillation | None:
    if measured.distillation is None:
        return None
    more = {} if measured.settings is None else settings_without_option(measured.settings)
    return Distillation.model_validate(measured.distillation.to_json() | more)


def comparisons_of(images: Sequence[Comparison], earlier: Comparisons | None = None) -> Comparisons:
    """The gallery's figures; those of an earlier report stay, which may not say how pictures are stored."""
    if earlier is not None and earlier.webp_quality is not None:
        return earlier
    quality = choose_quality(all_pictures(images))
    if earlier is not None:
        return earlier.model_copy(update={"webp_quality": quality})
    return Comparisons(
        difference_gain=DIFFERENCE_GAIN,
        webp_quality=quality,
        images=tuple(ImageFigures.model_validate(each.figures) for each in images),
    )
