"""What was written as ONNX and how long it takes, as parts of the report."""

from __future__ import annotations

from csa2glmha.bench.compare import FileTimings
from csa2glmha.export.onnx import ExportReport
from csa2glmha.report.schema_files import Onnx, Parity, RuntimeNeed, RuntimeTrial, Timing


def onnx_part(export: ExportReport) -> Onnx:
    """An exported file, and what runtimes made of it."""
    return Onnx(
        file=export.path.name,
        runtime=export.runtime,
        bytes=export.size_bytes,
        opset=export.opset,
        ir_version=export.ir_version,
        nodes=export.nodes,
        simplified=export.simplified,
        notes=tuple(export.notes),
        parity=tuple(
            Parity(shape=tuple(size.shape), max_abs=size.max_abs, relative=size.relative)
            for size in export.parity
        ),
        needs=tuple(RuntimeNeed.model_validate(vars(each)) for each in export.needs) or None,
        tried=tuple(RuntimeTrial.model_validate(vars(each)) for each in export.tried) or None,
    )


def timings_part(latency: FileTimings) -> dict[str, Timing]:
    """Times by the names of the files."""
    return {
        name: Timing(
            median=value.median_ms,
            low=value.low_ms,
            high=value.high_ms,
            runs=value.runs,
            ratio=ratio.median,
            ratio_low=ratio.low,
            ratio_high=ratio.high,
        )
        for name, value in latency.latencies.items()
        for ratio in [latency.ratios[name]]
    }
