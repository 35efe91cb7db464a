"""What other ranks and other methods would give: the Pareto plots and the table of baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.blocks import Block, Cell, Chart, Fold, Group, Legend, Named, Note, Series, Table
from csa2glmha.report.schema import Report
from csa2glmha.report.schema_search import Baseline, BaselineQuality, ParetoPoint
from csa2glmha.report.sections.axes import Axis, axis_of
from csa2glmha.report.sections.numbers import MINUS, finite, fixed, percent_change, signed

_KINDS = {
    "teacher": ("teacher", "var(--teacher)", "diamond"),
    "uniform": ("one rank everywhere", "var(--rank-k)", "circle"),
    "auto": ("ranks chosen per layer", "var(--student)", "square"),
    "baseline": ("other methods", "var(--ground-truth)", "triangle"),
}


@dataclass(frozen=True)
class _Place:
    """A point of a plot: its cost and quality."""

    point: ParetoPoint
    cost: float
    quality: float


def pareto_blocks(report: Report) -> list[Block]:
    """Quality against MACs, and against time where that was measured."""
    points = () if report.pareto is None else report.pareto.points
    if not points:
        return []
    students = [point for point in points if point.kind != "teacher"]
    to_ground_truth = any(finite(point.psnr_drop) is not None for point in students)
    label = (
        f"PSNR to the ground truth, student {MINUS} teacher, dB"
        if to_ground_truth
        else "PSNR to the teacher, dB"
    )
    drawn: list[Block] = [_scatter(points, to_ground_truth, False, "MACs, share of the teacher's", label)]
    if any(point.time_ratio is not None for point in students):
        drawn.append(_scatter(points, to_ground_truth, True, "time, share of the teacher's", label))
    note = (
        "Each point is a student: the further up and to the left, the better. The line joins those that no "
        "other beats in both respects."
    )
    return [Note(note), *drawn, Fold("Points as a table", [_point_table(points, to_ground_truth)])]


def _point_table(points: Sequence[ParetoPoint], to_ground_truth: bool) -> Table:
    rows = [
        (
            point.label,
            _KINDS.get(point.kind, (point.kind,))[0],
            format_macs(round(point.macs)),
            fixed(point.macs_ratio, 3),
            format_params(round(point.params)),
            fixed(1.0 if point.kind == "teacher" else point.time_ratio, 3),
            fixed(point.psnr_to_teacher, 2),
            signed(0.0 if point.kind == "teacher" and to_ground_truth else point.psnr_drop, 3),
        )
        for point in points
    ]
    costs = ("MACs", "ratio", "parameters", "time ratio")
    header = ("", "kind", *costs, "PSNR to teacher, dB", "PSNR to ground truth, change")
    return Table(header, rows, "Students and what they cost", text_columns=2)


def _places(points: Sequence[ParetoPoint], to_ground_truth: bool, timed: bool) -> list[_Place]:
    found = []
    for point in points:
        cost = point.time_ratio if timed else point.macs_ratio
        quality = finite(point.psnr_drop if to_ground_truth else point.psnr_to_teacher)
        if point.kind == "teacher":  # whatever was left out: it is what the others are compared with
            cost, quality = 1.0, 0.0 if to_ground_truth else quality
        if cost is not None and quality is not None:
            found.append(_Place(point, cost, quality))
    return found


def _scatter(
    points: Sequence[ParetoPoint], to_ground_truth: bool, timed: bool, x_label: str, y_label: str
) -> Block:
    shown = _places(points, to_ground_truth, timed)
    y = _quality_axis(shown, y_label)
    x = axis_of(x_label, [place.cost for place in shown], least=0.1)
    front = pareto_front([(each.cost, each.quality) for each in shown if each.point.kind != "teacher"])
    series = [Series("best at their cost", front, "var(--front)", dashed=True, width=1.6)]
    digits = 3 if to_ground_truth else 2
    for kind, (name, colour, dots) in _KINDS.items():
        inside = [each for each in shown if each.point.kind == kind and each.quality >= y.low]
        below = [each for each in shown if each.point.kind == kind and each.quality < y.low]
        if inside:
            series.append(_points(inside, digits, name, colour, dots))
        if below:
            series.append(_points(below, digits, f"{name}, below the chart", colour, "down"))
    return Group([Legend.of(series), Chart(f"{y_label} against {x_label}", series, x, y)], "tradeoff")


def _points(group: Sequence[_Place], digits: int, name: str, colour: str, shape: str) -> Series:
    figures = [f"{each.point.label}: {fixed(each.quality, digits, ' dB')}" for each in group]
    labels = figures if shape == "down" else [each.point.label for each in group]
    places = [(each.cost, each.quality) for each in group]
    return Series(name, places, colour, line=False, dots=shape, notes=figures, labels=labels)


def _quality_axis(places: Sequence[_Place], label: str) -> Axis:
    """Wide enough for students of this tool; methods that are far worse do not squeeze them together."""
    values = [each.quality for each in places]
    own = [each.quality for each in places if each.point.kind != "baseline"] or values
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


def baseline_blocks(report: Report) -> list[Block]:
    """Other ways to make the teacher smaller, beside this student."""
    if not report.baselines:
        return []
    rows = [
        _baseline_row(entry, report.complexity.before.macs) for entry in (_own(report), *report.baselines)
    ]
    header = (
        *("method", "MACs", "change", "parameters"),
        *("before distillation: PSNR to teacher, dB", "change to ground truth, dB"),
        *("after it: PSNR to teacher, dB", "change to ground truth, dB"),
    )
    return [Table(header, rows, "This student and other methods")]


def _own(report: Report) -> Baseline:
    def quality(network: str) -> BaselineQuality:
        return BaselineQuality(
            psnr_to_teacher=report.figure(network, "teacher", "psnr"), psnr_drop=report.psnr_drop_of(network)
        )

    return Baseline(
        name="GLMHA, this student",
        description="guided low-rank attention",
        macs=report.complexity.after.macs,
        params=report.complexity.after.params,
        before=quality("initialisation"),
        after=quality("student"),
    )


def _baseline_row(entry: Baseline, teacher_macs: float) -> list[Cell]:
    row: list[Cell] = [
        Named(entry.name, entry.description),
        format_macs(round(entry.macs)),
        percent_change(teacher_macs, entry.macs),
        format_params(round(entry.params)),
    ]
    for quality in (entry.before, entry.after):
        row.append(fixed(None if quality is None else quality.psnr_to_teacher, 2))
        row.append(signed(None if quality is None else quality.psnr_drop, 3))
    return row
