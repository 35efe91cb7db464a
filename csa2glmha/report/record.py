"""What a conversion measured, and its form in report.json."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from typing import Any

import onnxruntime
import torch

from csa2glmha import __version__
from csa2glmha.analysis.measure import join
from csa2glmha.attention.glmha import GLMHAConfig
from csa2glmha.bench.compare import FileTimings
from csa2glmha.checkpoint.student import LoadedModel
from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.hub import source_of
from csa2glmha.core.strict_json import json_values
from csa2glmha.data.batches import Data
from csa2glmha.distill.result import DistillResult
from csa2glmha.export.onnx import ExportReport
from csa2glmha.initialize import LayerFit
from csa2glmha.metrics.comparisons import Comparison
from csa2glmha.metrics.complexity import Complexity
from csa2glmha.metrics.evaluate import Judged
from csa2glmha.metrics.pictures import DIFFERENCE_GAIN
from csa2glmha.metrics.quality import CHANNEL_NAMES
from csa2glmha.report.html.pictures import all_pictures, choose_quality


@dataclass
class Measurements:
    """Everything that the report is made of."""

    teacher: LoadedModel
    options: ConvertOptions
    data: Data | None
    configs: dict[str, GLMHAConfig]
    fits: dict[str, LayerFit]
    before: Complexity
    after: Complexity
    seconds: dict[str, float]
    frame: tuple[int, int]
    distillation: DistillResult | None = None
    quality: dict[str, Judged] | None = None
    images: dict[str, Any] = field(default_factory=dict)
    export: ExportReport | None = None
    latency: FileTimings | None = None
    latency_missing: str | None = None
    device: str = "cpu"
    search: dict[str, Any] | None = None
    baselines: list[dict[str, Any]] | None = None
    comparisons: list[Comparison] = field(default_factory=list)


def build_report(measured: Measurements) -> dict[str, Any]:
    """Everything measured, as JSON values."""
    checkpoint, options, data = measured.teacher.checkpoint, measured.options, measured.data
    settings = options.model_dump(mode="json", exclude={"overwrite"})
    source = source_of(checkpoint.path)
    report: dict[str, Any] = {
        "tool": f"csa2glmha {__version__}",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "device": measured.device,
        "threads": torch.get_num_threads(),
        "seed": options.seed,
        "teacher": {
            "file": checkpoint.path.name,
            "sha256": checkpoint.sha256,
            "weights": checkpoint.weights,
            "notes": list(checkpoint.notes),
            **({} if source is None else {"source": source}),
            "architecture": measured.teacher.model.architecture,
            "hyperparameters": measured.teacher.model.hyperparameters,
        },
        "options": settings,
        "input_size": list(measured.frame),
        "complexity": {
            "input_shapes": [list(shape) for shape in measured.before.input_shapes],
            "input_shapes_after": [list(shape) for shape in measured.after.input_shapes],
            "before": _complexity(measured.before),
            "after": _complexity(measured.after),
        },
        "layers": [
            {
                "name": name,
                "heads": config.heads,
                "head_channels": config.head_channels,
                "rank_q": config.rank_q,
                "rank_k": config.rank_k,
                "rank_v": config.rank_v,
                "rank_pos": config.rank_pos,
                "attention": config.attention,
                "route": config.route,
                "macs_before": measured.before.modules[name].macs,
                "macs_after": measured.after.modules[name].macs,
                "params_before": measured.before.modules[name].params,
                "params_after": measured.after.modules[name].params,
                "key_error": measured.fits[name].key_error,
                "row_error": measured.fits[name].row_error,
                "value_error": measured.fits[name].value_error,
                "embedded_error": measured.fits[name].embedded_error,
                "logit_error": measured.fits[name].logit_error,
                "guide_explained": measured.fits[name].guide_explained,
            }
            for name, config in measured.configs.items()
        ],
        "seconds": {stage: round(value, 1) for stage, value in measured.seconds.items()},
    }
    analyses = [fit.analysis for fit in measured.fits.values() if fit.analysis is not None]
    if analyses:
        report["analysis"] = join(analyses)
    if data is not None:
        report["data"] = {
            "source": data.source,
            **measured.images,
            "judged_images": len(measured.images["held_out_names"]),
            "judged_on": f"central {measured.frame[0]} x {measured.frame[1]} pixels of held-out images",
            "degradation": data.degradation,
            "spectral": data.spectral,
            "stretched": data.stretched,
            "channel": None if data.spectral else CHANNEL_NAMES.get(measured.teacher.model.out_channels),
            "notes": list(data.notes),
        }
    if measured.baselines is not None:
        report["baselines"] = measured.baselines
    if measured.search is not None:
        report["search"] = json_values(measured.search)
    if measured.quality is not None:
        report["quality"] = {name: judged.to_json() for name, judged in measured.quality.items()}
    if measured.distillation is not None:
        report["distillation"] = measured.distillation.to_json()
    if measured.export is not None:
        export = measured.export
        report["onnx"] = {
            "file": export.path.name,
            "bytes": export.size_bytes,
            "opset": export.opset,
            "simplified": export.simplified,
            "notes": list(export.notes),
            "parity": [
                {"shape": list(size.shape), "max_abs": size.max_abs, "relative": size.relative}
                for size in export.parity
            ],
        }
    if measured.latency is not None:
        report["latency_ms"] = {
            name: {
                "median": value.median_ms,
                "low": value.low_ms,
                "high": value.high_ms,
                "runs": value.runs,
                "ratio": ratio.median,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
            }
            for name, value in measured.latency.latencies.items()
            for ratio in [measured.latency.ratios[name]]
        }
    if measured.latency_missing is not None:
        report["latency_missing"] = measured.latency_missing
    if measured.comparisons:
        report["comparisons"] = {
            "difference_gain": DIFFERENCE_GAIN,
            "webp_quality": choose_quality(all_pictures(measured.comparisons)),
            "images": [each.figures for each in measured.comparisons],
        }
    return report


def _complexity(complexity: Complexity) -> dict[str, Any]:
    return {
        "params": complexity.params,
        "constants": complexity.constants,
        "macs": complexity.macs,
        "conv_macs": complexity.conv_macs,
        "flops": complexity.flops,
        "uncounted": complexity.uncounted,
    }
