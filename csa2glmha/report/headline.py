"""The figures of a conversion in a few rows: what every rendering of a report begins with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pydantic import JsonValue

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.metrics import channel_of, metrics_of
from csa2glmha.report.part import Count
from csa2glmha.report.schema import Against, Report
from csa2glmha.report.schema_files import Timing

Row = tuple[str, str, str, str]

#: How reports name the stages of distillation.
STAGE_TITLES = {"start": "start", "layers": "layer by layer", "end": "end to end"}


def headline_rows(report: Report) -> list[Row]:
    """The table: what, before, after, ratio."""
    before, after = report.complexity.before, report.complexity.after
    rows: list[Row] = [_ratio_row("parameters", before.params, after.params, format_params)]
    if after.constants > before.constants:  # others are of the network itself
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
    for metric in metrics_of(channel_of(report)):
        value = report.figure("student", "teacher", metric.name)
        start = report.figure("initialisation", "teacher", metric.name)
        if value is not None:
            note = "" if start is None else f"{metric.number(start, 'teacher')} before distillation"
            shown = f"{metric.number(value, 'teacher')}{metric.unit}"
            rows.append((metric.title("teacher"), "", shown, note))
    return rows


def _ground_truth_rows(report: Report) -> list[Row]:
    rows: list[Row] = []
    against: Against = "ground_truth"
    for metric in metrics_of(channel_of(report)):
        own, value = (report.figure(name, against, metric.name) for name in ("teacher", "student"))
        if own is None or value is None or not math.isfinite(own) or not math.isfinite(value):
            continue
        before, after = (f"{metric.number(each, against)}{metric.unit}" for each in (own, value))
        change = metric.change(own, value, against)
        rows.append((metric.title(against), before, after, change))
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
