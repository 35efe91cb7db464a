"""The figures of a conversion in a few rows: what every rendering of a report begins with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pydantic import JsonValue

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.part import Count
from csa2glmha.report.schema import Against, Report, Timing

Row = tuple[str, str, str, str]

#: How reports name the stages of distillation.
STAGE_TITLES = {"start": "start", "layers": "layer by layer", "end": "end to end"}

#: Metrics in the order of the headline: name, label, unit, digits to the teacher and to the ground truth.
METRICS = (
    ("psnr", "PSNR", " dB", 2, 3),
    ("ssim", "SSIM", "", 4, 4),
    ("psnr_bands", "PSNR, mean of bands", " dB", 2, 3),
    ("sam", "spectral angle", " deg", 3, 3),
    ("mrae", "MRAE", "", 4, 4),
    ("rmse", "RMSE", "", 5, 5),
)

#: How reports name what PSNR and SSIM are of.
CHANNELS = {"rgb": "RGB", "y": "Y of YCbCr", "gray": "gray"}


def channel_of(report: Report) -> str | None:
    """What PSNR and SSIM of a report are of, a key of :data:`CHANNELS`; None where it does not say."""
    return None if report.data is None else report.data.channel


def metrics_of(channel: str | None) -> tuple[tuple[str, str, str, int, int], ...]:
    """:data:`METRICS`, PSNR and SSIM labelled by what they are of; spectra and older reports do not say."""
    if channel not in CHANNELS:
        return METRICS
    return tuple(
        (name, f"{label} ({CHANNELS[channel]})" if name in ("psnr", "ssim") else label, unit, digits, more)
        for name, label, unit, digits, more in METRICS
    )


def headline_rows(report: Report) -> list[Row]:
    """The table: what, before, after, ratio."""
    before, after = report.complexity.before, report.complexity.after
    rows: list[Row] = [_ratio_row("parameters", before.params, after.params, format_params)]
    if after.constants:
        rows.append(("constants of the mask", "", format_params(round(after.constants)), ""))
    rows.append(_ratio_row("MACs", before.macs, after.macs, format_macs))
    rows.append(_ratio_row("FLOPs", before.flops, after.flops, format_macs))
    latency = report.latency_ms
    if latency:
        teacher, student = (f"{latency[name].median:.0f} ms" for name in ("teacher", "student"))
        rows.append(("ONNX latency", teacher, student, f"{time_share(latency):.3f}"))
    return rows + _agreement_rows(report) + _ground_truth_rows(report)


def _agreement_rows(report: Report) -> list[Row]:
    rows: list[Row] = []
    for metric, label, unit, digits, _ in metrics_of(channel_of(report)):
        value = report.figure("student", "teacher", metric)
        start = report.figure("initialisation", "teacher", metric)
        if value is not None:
            note = "" if start is None else f"{start:.{digits}f} before distillation"
            rows.append((f"{label} to teacher", "", f"{value:.{digits}f}{unit}", note))
    return rows


def _ground_truth_rows(report: Report) -> list[Row]:
    rows: list[Row] = []
    against: Against = "ground_truth"
    for metric, label, unit, _, digits in metrics_of(channel_of(report)):
        own, value = (report.figure(name, against, metric) for name in ("teacher", "student"))
        if own is None or value is None or not math.isfinite(own) or not math.isfinite(value):
            continue
        change = f"{value - own:+.{digits}f}{unit}"
        rows.append(
            (f"{label} to ground truth", f"{own:.{digits}f}{unit}", f"{value:.{digits}f}{unit}", change)
        )
    return rows


def time_share(latency: Mapping[str, Timing]) -> float:
    """The student's time over the teacher's, from a report's ``latency_ms``.

    It is the median over rounds of the ratio within a round, which a machine that speeds up or slows down
    between them leaves alone. Reports of earlier versions have the times' medians only.
    """
    teacher, student = latency["teacher"], latency["student"]
    return student.median / teacher.median if student.ratio is None else student.ratio


def _ratio_row(name: str, before: Count, after: Count, show: Callable[[int], str]) -> Row:
    return (name, show(round(before)), show(round(after)), f"{after / before:.3f}" if before else "")


def rank_text(options: Mapping[str, JsonValue]) -> str:
    """The ranks that were asked for, e.g. "8 (q 16)"."""
    parts = ("q", "k", "v", "pos")
    extra = [f"{part} {options[f'rank_{part}']}" for part in parts if options.get(f"rank_{part}") is not None]
    return str(options["rank"]) + (f" ({', '.join(extra)})" if extra else "")
