"""What other ranks and other methods would give: the Pareto plots and the table of baselines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.html.axes import Axis, axis_of
from csa2glmha.report.html.charts import Series, chart, legend_of
from csa2glmha.report.html.markup import Markup, details, table, tag
from csa2glmha.report.html.numbers import MINUS, finite, fixed, known, percent_change, signed
from csa2glmha.report.html.summary import psnr_change

_KINDS = {
    "teacher": ("teacher", "var(--teacher)", "diamond"),
    "uniform": ("one rank everywhere", "var(--rank-k)", "circle"),
    "auto": ("ranks chosen per layer", "var(--student)", "square"),
    "baseline": ("other methods", "var(--truth)", "triangle"),
}


def pareto_section(pareto: dict[str, Any]) -> Markup:
    """Quality against MACs, and against time where that was measured."""
    points = [dict(point) for point in pareto["points"]]
    to_truth = any(
        finite(point.get("psnr_drop")) is not None for point in points if point["kind"] != "teacher"
    )
    key = "psnr_drop" if to_truth else "psnr_to_teacher"
    for point in points:
        if point["kind"] == "teacher":  # whatever was left out: it is what the others are compared with
            point |= {"time_ratio": 1.0, "macs_ratio": 1.0} | ({"psnr_drop": 0.0} if to_truth else {})
    label = f"PSNR to the truth, student {MINUS} teacher, dB" if to_truth else "PSNR to the teacher, dB"
    drawn = [
        _scatter(points, across, key, title, label)
        for across, title in (
            ("macs_ratio", "MACs, share of the teacher's"),
            ("time_ratio", "time, share of the teacher's"),
        )
        if any(finite(point.get(across)) is not None for point in points if point["kind"] != "teacher")
    ]
    note = (
        "Each point is a student: the further up and to the left, the better. The line joins those that no "
        "other beats in both respects."
    )
    rows = [
        (
            point["label"],
            _KINDS.get(point["kind"], (point["kind"],))[0],
            format_macs(round(point["macs"])),
            fixed(point["macs_ratio"], 3),
            format_params(point["params"]),
            fixed(point.get("time_ratio"), 3),
            fixed(point.get("psnr_to_teacher"), 2),
            signed(point.get("psnr_drop"), 3),
        )
        for point in points
    ]
    header = (
        "",
        "kind",
        "MACs",
        "ratio",
        "parameters",
        "time ratio",
        "PSNR to teacher, dB",
        "PSNR to truth, change",
    )
    return tag(
        "div",
        tag("p", note, class_="note"),
        drawn,
        details("Points as a table", table(rows, header, "Students and what they cost", text_columns=2)),
    )


def _scatter(points: list[dict[str, Any]], across: str, key: str, x_label: str, y_label: str) -> Markup:
    shown = [p for p in points if finite(p.get(across)) is not None and finite(p.get(key)) is not None]
    y = _quality_axis(shown, key, y_label)
    x = axis_of(x_label, [point[across] for point in shown], least=0.1)
    front = pareto_front([(point[across], point[key]) for point in shown if point["kind"] != "teacher"])
    series = [Series("best at their cost", front, "var(--front)", dashed=True, width=1.6)]
    for kind, (name, colour, dots) in _KINDS.items():
        inside = [p for p in shown if p["kind"] == kind and p[key] >= y.low]
        below = [p for p in shown if p["kind"] == kind and p[key] < y.low]
        for group, shape in ((inside, dots), (below, "down")):
            if group:
                title = name if shape != "down" or dots == "down" else f"{name}, below the chart"
                series.append(_points(group, across, key, title, colour, shape))
    chart_label = f"{y_label} against {x_label}"
    return tag("div", legend_of(series), chart(chart_label, series, x, y), class_="tradeoff")


def _points(
    group: Sequence[dict[str, Any]], across: str, key: str, name: str, colour: str, shape: str
) -> Series:
    digits = 3 if key == "psnr_drop" else 2
    figures = [f"{point['label']}: {fixed(point[key], digits, ' dB')}" for point in group]
    labels = figures if shape == "down" else [point["label"] for point in group]
    places = [(point[across], point[key]) for point in group]
    return Series(name, places, colour, line=False, dots=shape, notes=figures, labels=labels)


def _quality_axis(points: list[dict[str, Any]], key: str, label: str) -> Axis:
    """Wide enough for students of this tool; methods that are far worse do not squeeze them together."""
    values = known(point[key] for point in points)
    own = known(point[key] for point in points if point["kind"] != "baseline") or values
    axis = axis_of(label, values, margin=0.12, least=0.02)
    reach = axis_of(label, own, margin=0.12, least=0.02)
    span = reach.high - reach.low
    high = max(reach.high, max(values, default=reach.high))
    return Axis(label, max(axis.low, reach.low - 0.25 * span), high)


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, quality) that no other point beats, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, quality in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or quality > front[-1][1]:
            front.append((cost, quality))
    return front


def baseline_table(report: dict[str, Any]) -> Markup:
    """Other ways to make the teacher smaller, beside this student."""
    teacher_macs = report["complexity"]["before"]["macs"]
    quality = report.get("quality", {})
    student = {
        "name": "GLMHA, this student",
        "description": "guided low-rank attention",
        "macs": report["complexity"]["after"]["macs"],
        "params": report["complexity"]["after"]["params"],
        "after": {
            "psnr_to_teacher": quality.get("student", {}).get("teacher", {}).get("psnr"),
            "psnr_drop": psnr_change(quality),
        },
    }
    start = quality.get("initialisation", {})
    if start:
        student["before"] = {
            "psnr_to_teacher": start.get("teacher", {}).get("psnr"),
            "psnr_drop": psnr_change({**quality, "student": start}),
        }
    rows = [
        (
            tag(
                "span",
                tag("b", entry["name"]),
                tag("br"),
                tag("small", entry["description"]),
                class_="method",
            ),
            format_macs(round(entry["macs"])),
            percent_change(teacher_macs, entry["macs"]),
            format_params(round(entry["params"])),
            *(
                show((entry.get(when) or {}).get(key), digits)
                for when in ("before", "after")
                for key, show, digits in (("psnr_to_teacher", fixed, 2), ("psnr_drop", signed, 3))
            ),
        )
        for entry in (student, *report["baselines"])
    ]
    header = (
        "method",
        "MACs",
        "change",
        "parameters",
        "before distillation: PSNR to teacher, dB",
        "change to truth, dB",
        "after it: PSNR to teacher, dB",
        "change to truth, dB",
    )
    return tag("div", table(rows, header, "This student and other methods"))
