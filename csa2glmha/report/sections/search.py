"""What a rank search measured and predicted: single layers at every rank, and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.blocks import Block, Chart, Fold, Group, Heading, Legend, Note, Point, Series, Table
from csa2glmha.report.part import Count, Figure
from csa2glmha.report.schema import Report
from csa2glmha.report.schema_search import PredictedPoint, Search, SearchChoice
from csa2glmha.report.sections.analysis import depth_colour, depth_legend
from csa2glmha.report.sections.axes import Axis, axis_of
from csa2glmha.report.sections.numbers import MINUS, finite, fixed, signed

_SIDES = (("logits", "queries and keys"), ("values", "values"))
#: Outputs that agree to this many decibels differ by rounding only, and would squeeze the others together.
_EXACT_DB = 100.0

Costed = tuple[Count, Figure, str]


def search_blocks(report: Report) -> list[Block]:
    """Predicted curves and sensitivities; nothing without a search."""
    search = report.search
    if search is None:
        return []
    return [
        *([Group(_curves(report, search))] if search.predicted.uniform else []),
        *([Group(_sensitivity(search.choices))] if search.choices else []),
    ]


def _curves(report: Report, search: Search) -> list[Block]:
    """One rank for all layers against ranks chosen layer by layer, at the same costs."""
    by_params = search.budget.kind == "params"
    name = "parameters" if by_params else "MACs"
    before = report.complexity.before
    teacher = before.params if by_params else before.macs

    def costed(points: Sequence[PredictedPoint]) -> list[Costed]:
        return [
            (each.params if by_params else each.macs, each.psnr_to_teacher, f"rank {each.rank}")
            for each in points
        ]

    own = search.reached.params if by_params else search.reached.macs
    chosen = [(own, search.predicted.psnr_to_teacher, "")]
    uniform, searched = costed(search.predicted.uniform), costed(search.predicted.searched)
    series = [
        _series("one rank everywhere", uniform, teacher, "var(--rank-k)", "circle", ranks=True),
        _series("ranks chosen per layer", searched, teacher, "var(--front)", "square"),
        _series("this student", chosen, teacher, "var(--student)", "diamond"),
    ]
    points = [point for each in series for point in each.points]
    x = axis_of(f"{name}, share of the teacher's", [across for across, _ in points], least=0.05)
    y = axis_of("predicted PSNR to the teacher, dB", [up for _, up in points], margin=0.1, least=1.0)
    note = (
        "Predicted before distillation: the errors that the layers make one by one, added up. For every "
        f"rank, the ranks chosen layer by layer are those with the least sum for no more {name}."
    )
    return [
        Heading("Predicted: one rank for all layers, and ranks chosen for each"),
        Note(note),
        Legend.of(series),
        Chart(f"Predicted PSNR to the teacher against {name}", series, x, y),
        Fold("Predictions as a table", [_predictions(search, uniform, own, teacher, name)]),
    ]


def _predictions(search: Search, uniform: Sequence[Costed], own: Count, teacher: Count, name: str) -> Table:
    show = format_params if name == "parameters" else format_macs
    by_rank = {point.rank: finite(point.psnr_to_teacher) for point in search.predicted.searched}
    rows = [
        (
            str(point.rank),
            show(round(cost)),
            fixed(cost / teacher, 3),
            fixed(point.psnr_to_teacher, 2),
            fixed(by_rank.get(point.rank), 2),
            signed(_gain(by_rank.get(point.rank), finite(point.psnr_to_teacher)), 2),
        )
        for point, (cost, _, _) in zip(search.predicted.uniform, uniform, strict=True)
    ]
    student = fixed(search.predicted.psnr_to_teacher, 2)
    rows.append(("this student", show(round(own)), fixed(own / teacher, 3), "", student, ""))
    chosen = f"chosen per layer, for no more {name}, dB"
    header = ("rank", name, "ratio", "one rank everywhere, dB", chosen, "gained, dB")
    return Table(header, rows, "Predicted PSNR of uniform and chosen ranks")


def _gain(better: float | None, than: float | None) -> float | None:
    return None if better is None or than is None else better - than


def _series(
    name: str, points: Sequence[Costed], teacher: float, colour: str, dots: str, ranks: bool = False
) -> Series:
    shown = [
        (cost, psnr, label)
        for cost, figure, label in points
        if (psnr := finite(figure)) is not None and psnr < _EXACT_DB
    ]
    return Series(
        name,
        [(cost / teacher, psnr) for cost, psnr, _ in shown],
        colour,
        dots=dots,
        dashed=not ranks,
        notes=[f"{name}: {fixed(psnr, 2, ' dB')}" for _, psnr, _ in shown],
        labels=[label for _, _, label in shown] if ranks else (),
    )


def _sensitivity(choices: Sequence[SearchChoice]) -> list[Block]:
    """PSNR to the teacher where one side of one layer has a rank and everything else is exact."""
    names = list(dict.fromkeys(choice.layer for choice in choices))
    colours = [depth_colour(index, len(names)) for index in range(len(names))]
    note = (
        "Measured on held-out crops, before distillation: one side of one layer alone has the rank, all else "
        "is the teacher's. The lower a line, the more the layer loses by a low rank. Rank 0 of keys leaves "
        "out queries and keys; choices that also lower the rank of queries are in the table alone."
    )
    rows = [
        (
            choice.layer,
            choice.side,
            choice.ranks,
            fixed(choice.psnr_to_teacher, 2) if choice.error else "exact",
            _amount(choice.macs_saved, format_macs),
            _amount(choice.params_saved, format_params),
            "yes" if choice.picked else "",
        )
        for choice in choices
    ]
    header = ("layer", "side", "ranks", "PSNR to teacher, dB", "MACs saved", "parameters saved", "chosen")
    table = Table(header, rows, "What every rank of every layer loses and saves", text_columns=3)
    return [
        Heading("Sensitivity of every layer"),
        Note(note),
        depth_legend(names, colours),
        Group(_sensitivity_charts(choices, names, colours), "multiples pairs"),
        Fold("Sensitivities as a table", [table], too_long_for_text=True),
    ]


def _sensitivity_charts(
    choices: Sequence[SearchChoice], names: Sequence[str], colours: Sequence[str]
) -> list[Block]:
    curves = {side: [_points(choices, name, side) for name in names] for side, _ in _SIDES}
    y = axis_of(
        "PSNR to the teacher, dB",
        [value for each in curves.values() for curve in each for _, value in curve],
        least=1.0,
    )
    widest = max((rank for each in curves.values() for curve in each for rank, _ in curve), default=1)
    x = Axis("rank per head", 0, max(widest, 2))
    drawn: list[Block] = []
    for side, words in _SIDES:
        series = [
            Series(name, curve, colour, dots="" if len(curve) > 1 else "circle", notes=[name])
            for name, curve, colour in zip(names, curves[side], colours, strict=True)
            if curve
        ]
        if series:
            label = f"PSNR to the teacher by rank of {words}, one line a layer"
            chart = Chart(label, series, x, y, room="half")
            drawn.append(Group([Heading(words.capitalize(), 4), chart]))
    return drawn


def _points(choices: Sequence[SearchChoice], name: str, side: str) -> list[Point]:
    return sorted(
        (rank, value)
        for choice in choices
        if (choice.layer, choice.side) == (name, side) and choice.rank_q is None
        for rank in [choice.rank_k if side == "logits" else choice.rank_v]
        if rank is not None and (value := finite(choice.psnr_to_teacher)) is not None
    )


def _amount(value: Count, show: Callable[[int], str]) -> str:
    return f"{MINUS}{show(round(-value))}" if value < 0 else show(round(value))
