"""What a search measured and predicted: single layers at every size, and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.metrics.outputs import Scale
from csa2glmha.report.blocks import Block, Chart, Fold, Group, Heading, Legend, Note, Point, Series, Table
from csa2glmha.report.part import Count, Figure
from csa2glmha.report.schema import Report
from csa2glmha.report.schema_search import PredictedPoint, Search, SearchChoice
from csa2glmha.report.sections.analysis import depth_colour, depth_legend
from csa2glmha.report.sections.axes import Axis, axis_of
from csa2glmha.report.sections.numbers import MINUS, UNKNOWN, finite, fixed
from csa2glmha.report.sections.scales import column, gained, is_exact, scale_axis, shown, with_unit

_SIDES = (("logits", "queries and keys"), ("values", "values"))
#: Of the choices for feed-forward networks.
_WIDTHS = "hidden"

Costed = tuple[Count, Figure, str]


def search_blocks(report: Report) -> list[Block]:
    """Predicted curves and sensitivities; nothing without a search."""
    search = report.search
    if search is None:
        return []
    return [
        *([Group(_curves(report, search))] if search.predicted.uniform else []),
        *([Group(_sensitivity(search))] if search.choices else []),
    ]


def _curves(report: Report, search: Search) -> list[Block]:
    """One rank for all layers against ranks chosen layer by layer, at the same costs."""
    by_params = search.budget.kind == "params"
    name = "parameters" if by_params else "MACs"
    before = report.complexity.before
    teacher = before.params if by_params else before.macs

    def costed(points: Sequence[PredictedPoint]) -> list[Costed]:
        return [
            (each.params if by_params else each.macs, each.to_teacher, f"rank {each.rank}") for each in points
        ]

    own = search.reached.params if by_params else search.reached.macs
    chosen = [(own, search.predicted.to_teacher, "")]
    uniform, searched = costed(search.predicted.uniform), costed(search.predicted.searched)
    series = [
        _series(search.scale, "one rank everywhere", uniform, teacher, "var(--rank-k)", "circle", ranks=True),
        _series(search.scale, "chosen per layer", searched, teacher, "var(--front)", "square"),
        _series(search.scale, "this student", chosen, teacher, "var(--student)", "diamond"),
    ]
    points = [point for each in series for point in each.points]
    x = axis_of(f"{name}, share of the teacher's", [across for across, _ in points], least=0.05)
    label = search.scale.label
    y = scale_axis(search.scale, f"predicted {label}", [up for _, up in points], margin=0.1, least=1.0)
    note = (
        "Predicted before distillation: the errors that the layers make one by one, added up. For every "
        f"rank, what is chosen layer by layer has the least sum for no more {name}."
    )
    return [
        Heading("Predicted: one rank for all layers, and sizes chosen for each"),
        Note(note),
        Legend.of(series),
        Chart(f"Predicted {label} against {name}", series, x, y),
        Fold("Predictions as a table", [_predictions(search, uniform, own, teacher, name)]),
    ]


def _predictions(search: Search, uniform: Sequence[Costed], own: Count, teacher: Count, name: str) -> Table:
    show, scale = format_params if name == "parameters" else format_macs, search.scale
    by_rank = {point.rank: finite(point.to_teacher) for point in search.predicted.searched}
    rows = [
        (
            str(point.rank),
            show(round(cost)),
            fixed(cost / teacher, 3),
            shown(scale, point.to_teacher),
            shown(scale, by_rank.get(point.rank)),
            gained(scale, point.to_teacher, by_rank.get(point.rank)) or UNKNOWN,
        )
        for point, (cost, _, _) in zip(search.predicted.uniform, uniform, strict=True)
    ]
    student = shown(scale, search.predicted.to_teacher)
    rows.append(("this student", show(round(own)), fixed(own / teacher, 3), "", student, ""))
    columns = ("one rank everywhere", f"chosen per layer, for no more {name}", "gained")
    header = ("rank", name, "ratio", *(with_unit(scale, words) for words in columns))
    return Table(header, rows, f"Predicted {scale.label} of uniform and chosen ranks")


def _series(
    scale: Scale,
    name: str,
    points: Sequence[Costed],
    teacher: float,
    colour: str,
    dots: str,
    ranks: bool = False,
) -> Series:
    drawn = [
        (cost, value, label)
        for cost, figure, label in points
        if (value := finite(figure)) is not None and not is_exact(scale, value)
    ]
    return Series(
        name,
        [(cost / teacher, value) for cost, value, _ in drawn],
        colour,
        dots=dots,
        dashed=not ranks,
        notes=[f"{name}: {shown(scale, value)}{scale.unit}" for _, value, _ in drawn],
        labels=[label for _, _, label in drawn] if ranks else (),
    )


def _sensitivity(search: Search) -> list[Block]:
    """Agreement with the teacher where one part of one layer is made smaller and all else is exact."""
    choices, scale = search.choices, search.scale
    names = list(dict.fromkeys(choice.layer for choice in choices))
    colours = [depth_colour(index, len(names)) for index in range(len(names))]
    note = (
        f"Measured on {scale.what}, before distillation: one part of one layer alone is made smaller, all "
        f"else is the teacher's. The {'lower' if scale.unit else 'higher'} a line, the more the layer "
        "loses by it. Rank 0 of keys leaves out queries and keys. Choices that also lower the rank of "
        "queries, and skipped attention layers, are in the table alone."
    )
    rows = [
        (
            choice.layer,
            choice.side,
            choice.ranks,
            shown(scale, choice.to_teacher) if choice.error else "exact",
            _amount(choice.macs_saved, format_macs),
            _amount(choice.params_saved, format_params),
            "yes" if choice.picked else "",
        )
        for choice in choices
    ]
    header = ("layer", "part", "choice", column(scale), "MACs saved", "parameters saved", "chosen")
    table = Table(header, rows, "What every choice for every layer loses and saves", text_columns=3)
    return [
        Heading("Sensitivity of every layer"),
        Note(note),
        depth_legend(names, colours),
        Group(_sensitivity_charts(search, names, colours), "multiples pairs"),
        Fold("Sensitivities as a table", [table], too_long_for_text=True),
    ]


def _sensitivity_charts(search: Search, names: Sequence[str], colours: Sequence[str]) -> list[Block]:
    scale = search.scale
    sides = [side for side, _ in _SIDES]
    curves = {side: [_points(search.choices, name, side) for name in names] for side in (*sides, _WIDTHS)}
    values = [value for each in curves.values() for curve in each for _, value in curve]
    y = scale_axis(scale, scale.label, values, margin=0.06, least=1.0)
    widest = max((rank for side in sides for curve in curves[side] for rank, _ in curve), default=1)
    ranks, widths = Axis("rank per head", 0, max(widest, 2)), Axis("share of hidden channels", 0, 1)
    charts = [(side, words, f"rank of {words}", ranks) for side, words in _SIDES]
    charts.append((_WIDTHS, "feed-forward networks", "width of feed-forward networks", widths))
    drawn: list[Block] = []
    for side, words, by, x in charts:
        series = [
            Series(name, curve, colour, dots="" if len(curve) > 1 else "circle", notes=[name])
            for name, curve, colour in zip(names, curves[side], colours, strict=True)
            if curve
        ]
        if series:
            chart = Chart(f"{scale.label} by {by}, one line a layer", series, x, y, room="half")
            drawn.append(Group([Heading(words.capitalize(), 4), chart]))
    return drawn


def _points(choices: Sequence[SearchChoice], name: str, side: str) -> list[Point]:
    mine = [choice for choice in choices if (choice.layer, choice.side) == (name, side)]
    hidden = max((choice.width or 0 for choice in mine), default=0)
    found: list[Point] = []
    for choice in mine:
        value = finite(choice.to_teacher)
        across: float | None = choice.rank_k if side == "logits" else choice.rank_v
        if side == _WIDTHS:
            across = None if choice.width is None else choice.width / max(hidden, 1)
        if across is not None and choice.rank_q is None and value is not None and choice.error:
            found.append((across, value))
    return sorted(found)


def _amount(value: Count, show: Callable[[int], str]) -> str:
    return f"{MINUS}{show(round(-value))}" if value < 0 else show(round(value))
