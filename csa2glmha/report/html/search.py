"""What a rank search measured and predicted: single layers at every rank, and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.html.analysis import depth_colour, depth_legend
from csa2glmha.report.html.axes import Axis, axis_of
from csa2glmha.report.html.charts import Series, chart, legend_of
from csa2glmha.report.html.markup import Markup, details, table, tag
from csa2glmha.report.html.numbers import MINUS, finite, fixed, known, signed

_SIDES = (
    ("logits", "rank_k", "queries and keys"),
    ("values", "rank_v", "values"),
)
_COSTS: dict[str, tuple[str, Callable[[int], str]]] = {
    "macs": ("MACs", format_macs),
    "params": ("parameters", format_params),
}
#: Outputs that agree to this many decibels differ by rounding only, and would squeeze the others together.
_EXACT_DB = 100.0


def search_section(report: dict[str, Any]) -> Markup | None:
    """Predicted curves and sensitivities; None without a search."""
    search = report.get("search") or {}
    # A sweep also shows points that an earlier version made, whose reports say less.
    choices = [choice for choice in search.get("choices", []) if "psnr_to_teacher" in choice]
    parts = [
        _curves(report) if search.get("predicted", {}).get("uniform") else None,
        _sensitivity(choices) if choices else None,
    ]
    return tag("div", parts) if any(part is not None for part in parts) else None


def _curves(report: dict[str, Any]) -> Markup:
    """One rank for all layers against ranks chosen layer by layer, at the same costs."""
    search = report["search"]
    cost = "params" if search["budget"]["kind"] == "params" else "macs"
    name, show = _COSTS[cost]
    teacher = report["complexity"]["before"][cost]
    predicted = search["predicted"]
    uniform, searched = predicted["uniform"], predicted.get("searched", [])
    chosen = {**search["reached"], "psnr_to_teacher": predicted["psnr_to_teacher"]}
    series = [
        _series("one rank everywhere", uniform, cost, teacher, "var(--rank-k)", "circle", ranks=True),
        _series("ranks chosen per layer", searched, cost, teacher, "var(--front)", "square"),
        _series("this student", [chosen], cost, teacher, "var(--student)", "diamond"),
    ]
    points = [point for each in series for point in each.points]
    x = axis_of(f"{name}, share of the teacher's", [across for across, _ in points], least=0.05)
    y = axis_of("predicted PSNR to the teacher, dB", [up for _, up in points], margin=0.1, least=1.0)
    by_rank = {point["rank"]: finite(point["psnr_to_teacher"]) for point in searched}
    rows = [
        (
            str(point["rank"]),
            show(round(point[cost])),
            fixed(point[cost] / teacher, 3),
            fixed(point["psnr_to_teacher"], 2),
            fixed(by_rank.get(point["rank"]), 2),
            signed(_gain(by_rank.get(point["rank"]), finite(point["psnr_to_teacher"])), 2),
        )
        for point in uniform
    ]
    rows.append(
        (
            "this student",
            show(round(chosen[cost])),
            fixed(chosen[cost] / teacher, 3),
            "",
            fixed(chosen["psnr_to_teacher"], 2),
            "",
        )
    )
    header = (
        "rank",
        name,
        "ratio",
        "one rank everywhere, dB",
        f"chosen per layer, for no more {name}, dB",
        "gained, dB",
    )
    note = (
        "Predicted before distillation: the errors that the layers make one by one, added up. For every "
        f"rank, the ranks chosen layer by layer are those with the least sum for no more {name}."
    )
    return tag(
        "div",
        tag("h3", "Predicted: one rank for all layers, and ranks chosen for each"),
        tag("p", note, class_="note"),
        legend_of(series),
        chart(f"Predicted PSNR to the teacher against {name}", series, x, y),
        details("Predictions as a table", table(rows, header, "Predicted PSNR of uniform and chosen ranks")),
    )


def _gain(better: float | None, than: float | None) -> float | None:
    return None if better is None or than is None else better - than


def _series(
    name: str,
    points: Sequence[dict[str, Any]],
    cost: str,
    teacher: float,
    colour: str,
    dots: str,
    ranks: bool = False,
) -> Series:
    shown = [
        point
        for point in points
        if (psnr := finite(point["psnr_to_teacher"])) is not None and psnr < _EXACT_DB
    ]
    figures = [fixed(point["psnr_to_teacher"], 2, " dB") for point in shown]
    return Series(
        name,
        [(point[cost] / teacher, point["psnr_to_teacher"]) for point in shown],
        colour,
        dots=dots,
        dashed=not ranks,
        notes=[f"{name}: {figure}" for figure in figures],
        labels=[f"rank {point['rank']}" for point in shown] if ranks else (),
    )


def _sensitivity(choices: Sequence[dict[str, Any]]) -> Markup:
    """PSNR to the teacher where one side of one layer has a rank and everything else is exact."""
    names = list(dict.fromkeys(choice["layer"] for choice in choices))
    colours = [depth_colour(index, len(names)) for index in range(len(names))]
    curves = {side: [_points(choices, name, side, rank) for name in names] for side, rank, _ in _SIDES}
    values = [value for each in curves.values() for curve in each for _, value in curve]
    y = axis_of("PSNR to the teacher, dB", values, least=1.0)
    widest = max((rank for each in curves.values() for curve in each for rank, _ in curve), default=1)
    drawn = [
        tag(
            "div",
            tag("h4", words.capitalize()),
            chart(
                f"PSNR to the teacher by rank of {words}, one line a layer",
                [
                    Series(name, curve, colour, dots="" if len(curve) > 1 else "circle", notes=[name])
                    for name, curve, colour in zip(names, curves[side], colours, strict=True)
                    if curve
                ],
                Axis("rank per head", 0, max(widest, 2)),
                y,
                room="half",
            ),
        )
        for side, _, words in _SIDES
        if any(curves[side])
    ]
    note = (
        "Measured on held-out crops, before distillation: one side of one layer alone has the rank, all else "
        "is the teacher's. The lower a line, the more the layer loses by a low rank. Rank 0 of keys leaves "
        "out queries and keys; choices that also lower the rank of queries are in the table alone."
    )
    header = ("layer", "side", "ranks", "PSNR to teacher, dB", "MACs saved", "parameters saved", "chosen")
    return tag(
        "div",
        tag("h3", "Sensitivity of every layer"),
        tag("p", note, class_="note"),
        depth_legend(names, colours),
        tag("div", drawn, class_="multiples pairs"),
        details(
            "Sensitivities as a table",
            table(
                [
                    (
                        choice["layer"],
                        choice["side"],
                        choice["ranks"],
                        fixed(choice["psnr_to_teacher"], 2) if choice["error"] else "exact",
                        _amount(choice["macs_saved"], format_macs),
                        _amount(choice["params_saved"], format_params),
                        "yes" if choice["picked"] else "",
                    )
                    for choice in choices
                ],
                header,
                "What every rank of every layer loses and saves",
                text_columns=3,
            ),
        ),
    )


def _points(choices: Sequence[dict[str, Any]], name: str, side: str, rank: str) -> list[tuple[float, float]]:
    mine = [
        (choice[rank], choice["psnr_to_teacher"])
        for choice in choices
        if (choice["layer"], choice["side"]) == (name, side)
        and choice.get(rank) is not None
        and choice.get("rank_q") is None
    ]
    return sorted((place, value) for place, value in mine if known([value]))


def _amount(value: int, show: Callable[[int], str]) -> str:
    return f"{MINUS}{show(-value)}" if value < 0 else show(value)
