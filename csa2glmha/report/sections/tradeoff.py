"""What other ranks and other methods would give: the Pareto plots and the table of baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.blocks import Block, Cell, Chart, Fold, Group, Legend, Named, Note, Series, Table
from csa2glmha.report.part import Figure
from csa2glmha.report.schema import Report
from csa2glmha.report.schema_search import Baseline, ParetoPoint
from csa2glmha.report.sections.axes import Axis, axis_of
from csa2glmha.report.sections.numbers import MINUS, UNKNOWN, finite, fixed, percent_change, short, signed
from csa2glmha.report.sections.scales import EXACT_KL

_KINDS = {
    "teacher": ("teacher", "var(--teacher)", "diamond"),
    "uniform": ("one rank everywhere", "var(--rank-k)", "circle"),
    "auto": ("chosen per layer", "var(--student)", "square"),
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
    quality = _quality_of(students)
    drawn: list[Block] = [_scatter(points, quality, False, "MACs, share of the teacher's")]
    if any(point.time_ratio is not None for point in students):
        drawn.append(_scatter(points, quality, True, "time, share of the teacher's"))
    note = (
        f"Each point is a student: the further {'down' if quality.falling else 'up'} and to the left, the "
        "better. The line joins those that no other beats in both respects."
    )
    return [Note(note), *drawn, Fold("Points as a table", [_point_table(points, quality)])]


@dataclass(frozen=True)
class _Quality:
    """What of a point is drawn against its cost.

    Attributes:
        label: of the axis.
        value: of a point.
        digits: that are written; None: three that count.
        unit: behind them.
        teacher: of the teacher itself; None: it has none.
        falling: less is better.
        columns: of the table, with what is in them.
    """

    label: str
    value: Callable[[ParetoPoint], Figure]
    digits: int | None
    unit: str
    teacher: float | None
    falling: bool
    columns: Mapping[str, Callable[[ParetoPoint], str]]

    def shown(self, value: float) -> str:
        """A value with its unit."""
        return short(value) if self.digits is None else fixed(value, self.digits, self.unit)


def _quality_of(students: Sequence[ParetoPoint]) -> _Quality:
    """Of images PSNR, of classes accuracy or KL divergence: against the ground truth, where that is known."""
    if any(point.kl_to_teacher is not None for point in students):
        return _of_classes(any(finite(point.top1_change) is not None for point in students))
    known = any(finite(point.psnr_drop) is not None for point in students)
    columns = {
        "PSNR to teacher, dB": lambda point: fixed(point.psnr_to_teacher, 2),
        "PSNR to ground truth, change": lambda point: signed(
            0.0 if point.kind == "teacher" and known else point.psnr_drop, 3
        ),
    }
    if known:
        label = f"PSNR to the ground truth, student {MINUS} teacher, dB"
        return _Quality(label, lambda point: point.psnr_drop, 3, " dB", 0.0, False, columns)
    return _Quality(
        "PSNR to the teacher, dB", lambda point: point.psnr_to_teacher, 2, " dB", None, False, columns
    )


def _of_classes(known: bool) -> _Quality:
    def percent(share: Figure) -> float | None:
        return None if share is None else 100 * share

    columns = {
        "KL divergence to teacher": lambda point: short(finite(point.kl_to_teacher)),
        "top-1 agreement, %": lambda point: fixed(percent(point.top1_to_teacher), 1),
        "top-1 accuracy, change in %": lambda point: signed(percent(point.top1_change), 1),
    }
    if known:
        label = f"top-1 accuracy, student {MINUS} teacher, %"
        return _Quality(label, lambda point: percent(point.top1_change), 1, " %", 0.0, False, columns)
    label = "KL divergence to the teacher"
    return _Quality(label, lambda point: point.kl_to_teacher, None, "", None, True, columns)


def _point_table(points: Sequence[ParetoPoint], quality: _Quality) -> Table:
    rows = [
        (
            point.label,
            _KINDS.get(point.kind, (point.kind,))[0],
            format_macs(round(point.macs)),
            fixed(point.macs_ratio, 3),
            format_params(round(point.params)),
            fixed(1.0 if point.kind == "teacher" else point.time_ratio, 3),
            *(cell(point) for cell in quality.columns.values()),
        )
        for point in points
    ]
    costs = ("MACs", "ratio", "parameters", "time ratio")
    header = ("", "kind", *costs, *quality.columns)
    return Table(header, rows, "Students and what they cost", text_columns=2)


def _places(points: Sequence[ParetoPoint], quality: _Quality, timed: bool) -> list[_Place]:
    found = []
    for point in points:
        cost = point.time_ratio if timed else point.macs_ratio
        value = finite(quality.value(point))
        if point.kind == "teacher":  # whatever was left out: it is what the others are compared with
            cost, value = 1.0, value if quality.teacher is None else quality.teacher
        if cost is not None and value is not None and not (quality.falling and value <= EXACT_KL):
            found.append(_Place(point, cost, value))
    return found


def _scatter(points: Sequence[ParetoPoint], quality: _Quality, timed: bool, x_label: str) -> Block:
    shown = _places(points, quality, timed)
    y = _quality_axis(shown, quality)
    x = axis_of(x_label, [place.cost for place in shown], least=0.1)
    sign = -1 if quality.falling else 1
    students = [(each.cost, sign * each.quality) for each in shown if each.point.kind != "teacher"]
    front = [(cost, sign * value) for cost, value in pareto_front(students)]
    series = [Series("best at their cost", front, "var(--front)", dashed=True, width=1.6)]
    for kind, (name, colour, dots) in _KINDS.items():
        inside = [each for each in shown if each.point.kind == kind and each.quality >= y.low]
        below = [each for each in shown if each.point.kind == kind and each.quality < y.low]
        if inside:
            series.append(_points(inside, quality, name, colour, dots))
        if below:
            series.append(_points(below, quality, f"{name}, below the chart", colour, "down"))
    return Group([Legend.of(series), Chart(f"{quality.label} against {x_label}", series, x, y)], "tradeoff")


def _points(group: Sequence[_Place], quality: _Quality, name: str, colour: str, shape: str) -> Series:
    figures = [f"{each.point.label}: {quality.shown(each.quality)}" for each in group]
    labels = figures if shape == "down" else [each.point.label for each in group]
    places = [(each.cost, each.quality) for each in group]
    return Series(name, places, colour, line=False, dots=shape, notes=figures, labels=labels)


def _quality_axis(places: Sequence[_Place], quality: _Quality) -> Axis:
    """Wide enough for students of this tool; methods that are far worse do not squeeze them together."""
    values, label = [each.quality for each in places], quality.label
    if quality.falling:
        return axis_of(label, values, logarithmic=True)
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
    distilled = report.distillation is not None
    rows = [
        _baseline_row(entry, report.complexity.before.macs, distilled)
        for entry in (_own(report, distilled), *report.baselines)
    ]
    names = ("PSNR to teacher, dB", "change to ground truth, dB")
    if report.classifies:
        names = ("KL divergence to teacher", "change of top-1 accuracy, %")
    header = ["method", "MACs", "change", "parameters", f"before distillation: {names[0]}", names[1]]
    if distilled:
        header += [f"after it: {names[0]}", names[1]]
    return [Table(header, rows, "This student and other methods")]


def _own(report: Report, distilled: bool) -> Baseline:
    narrower = bool(report.feed_forwards)
    student = report.against_teacher("student")
    return Baseline(
        name="GLMHA, this student",
        description="guided low-rank attention" + (", narrower feed-forward networks" if narrower else ""),
        macs=report.complexity.after.macs,
        params=report.complexity.after.params,
        before=report.against_teacher("initialisation") if distilled else student,
        after=student if distilled else None,
    )


def _baseline_row(entry: Baseline, teacher_macs: float, distilled: bool) -> list[Cell]:
    row: list[Cell] = [
        Named(entry.name, entry.description),
        format_macs(round(entry.macs)),
        percent_change(teacher_macs, entry.macs),
        format_params(round(entry.params)),
    ]
    for quality in (entry.before, entry.after) if distilled else (entry.before,):
        if quality is None:
            row += [UNKNOWN, UNKNOWN]
        elif quality.kl_to_teacher is not None:
            change = quality.top1_change
            row += [short(quality.kl_to_teacher), signed(None if change is None else 100 * change, 1)]
        else:
            row += [fixed(quality.psnr_to_teacher, 2), signed(quality.psnr_drop, 3)]
    return row
