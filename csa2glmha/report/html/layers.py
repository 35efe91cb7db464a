"""What became of every attention layer: its cost before and after, and its ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from csa2glmha.metrics.complexity import format_macs, format_params
from csa2glmha.report.html.axes import Axis, axis_of
from csa2glmha.report.html.charts import Plot, in_sizes, legend
from csa2glmha.report.html.markup import Markup, details, table, tag
from csa2glmha.report.html.numbers import TIMES, percent_change, short

_PARTS = {"q": ("queries", "var(--rank-q)"), "k": ("keys", "var(--rank-k)"), "v": ("values", "var(--rank-v)")}
#: Of the room that a layer has in the chart of ranks, so much is its columns'.
_COLUMN_SHARE = 0.74


def layer_bars(report: dict[str, Any]) -> Markup:
    """MACs and parameters of every layer, before and after."""
    layers = report["layers"]
    totals = {
        f"{what}_{when}": sum(layer[f"{what}_{when}"] for layer in layers)
        for what in ("macs", "params")
        for when in ("before", "after")
    }
    whole = report["complexity"]
    sentence = (
        f"Attention takes {format_macs(totals['macs_before'])} of the teacher's "
        f"{format_macs(whole['before']['macs'])} MACs and {format_params(totals['params_before'])} of its "
        f"{format_params(whole['before']['params'])} parameters; the student's takes "
        f"{format_macs(totals['macs_after'])} and {format_params(totals['params_after'])}."
    )
    largest = {
        what: max(max(layer[f"{what}_before"], layer[f"{what}_after"]) for layer in layers)
        for what in ("macs", "params")
    }
    head = tag(
        "div",
        tag("span", "layer"),
        tag("span", "MACs"),
        tag("span", "parameters"),
        class_="bars-row bars-head",
        aria_hidden="true",
    )
    rows = [
        tag(
            "div",
            tag("span", layer["name"], class_="bars-name"),
            _bar("MACs", layer["macs_before"], layer["macs_after"], largest["macs"], format_macs),
            _bar(
                "parameters", layer["params_before"], layer["params_after"], largest["params"], format_params
            ),
            class_="bars-row",
        )
        for layer in layers
    ]
    return tag(
        "div",
        tag("p", sentence, class_="note"),
        legend([("before", "var(--before)", "box"), ("after", "var(--student)", "box")]),
        tag("div", head, rows, class_="bars"),
        details("Layers as a table", _layer_table(report)),
    )


def _bar(what: str, before: float, after: float, largest: float, show: Callable[[int], str]) -> Markup:
    largest = largest or 1
    drawn = tag(
        "svg",
        tag("rect", width=f"{100 * before / largest:.2f}%", y=0, height=14, rx=3, class_="before"),
        tag("rect", width=f"{100 * after / largest:.2f}%", y=3.5, height=7, rx=2, class_="after"),
        class_="bar",
        aria_hidden="true",
    )
    words = tag(
        "span",
        tag("span", f"{what} ", class_="narrow-only"),
        f"{show(int(before))} → {show(int(after))} ",
        tag("b", percent_change(before, after)),
        class_="bar-text",
    )
    return tag("span", drawn, words, class_="bar-cell")


def rank_chart(report: dict[str, Any]) -> Markup:
    """Ranks of queries, keys and values of every layer before the channels that its heads have."""
    layers = report["layers"]
    y = axis_of("rank per head", [layer["head_channels"] for layer in layers], zero=True, margin=0.04)
    x = Axis("layer, from input to output", 0.5, len(layers) + 0.5, ticks=range(1, len(layers) + 1))

    def draw(plot: Plot) -> list[Markup]:
        return [_columns(plot, number, layer) for number, layer in enumerate(layers, 1)]

    entries = [(name, colour, "box") for name, colour in _PARTS.values()]
    return tag(
        "div",
        legend([("channels per head: full rank, where columns are pale", "var(--track)", "box"), *entries]),
        in_sizes("Ranks of queries, keys and values in every layer", draw, x, y),
        details("Ranks as a table", _rank_table(layers)),
    )


def _columns(plot: Plot, number: int, layer: dict[str, Any]) -> Markup:
    full = layer["head_channels"]
    left, _ = plot.place((number - _COLUMN_SHARE / 2, 0))
    right, top = plot.place((number + _COLUMN_SHARE / 2, full))
    width = (right - left) / len(_PARTS)
    drawn = [_column(left, top, right - left, plot.bottom, "var(--track)")]
    for index, (part, (_, colour)) in enumerate(_PARTS.items()):
        _, height = plot.place((number, layer[f"rank_{part}"]))
        kind = "dot pale" if layer[f"rank_{part}"] == full else "dot"
        drawn.append(_column(left + index * width, height, width, plot.bottom, colour, 0.12, kind))
    ranks = ", ".join(f"{name} {layer[f'rank_{part}']}" for part, (name, _) in _PARTS.items())
    return tag("g", tag("title", f"{layer['name']}: {ranks}, of {full}"), drawn)


def _column(
    left: float, top: float, width: float, bottom: float, colour: str, gap: float = 0.0, kind: str = "dot"
) -> Markup:
    return tag(
        "rect",
        x=f"{left + gap * width:.1f}",
        y=f"{top:.1f}",
        width=f"{width * (1 - 2 * gap):.1f}",
        height=f"{max(bottom - top, 0):.1f}",
        rx=1.5,
        class_=kind,
        style=f"--c:{colour}",
    )


def _rank(layer: dict[str, Any], part: str) -> str:
    rank = layer[f"rank_{part}"]
    return "full" if rank == layer["head_channels"] else str(rank)


def _rank_table(layers: list[dict[str, Any]]) -> Markup:
    rows = [
        (
            layer["name"],
            f"{layer['heads']} {TIMES} {layer['head_channels']}",
            *(_rank(layer, part) for part in _PARTS),
            "" if layer.get("rank_pos") is None else str(layer["rank_pos"]),
        )
        for layer in layers
    ]
    header = ["layer", f"heads {TIMES} channels", *(name for name, _ in _PARTS.values()), "positional"]
    if not any(row[-1] for row in rows):
        rows, header = [row[:-1] for row in rows], header[:-1]
    return table(rows, header, "Ranks of every layer")


def _layer_table(report: dict[str, Any]) -> Markup:
    rows = [
        (
            layer["name"],
            layer["route"],
            format_macs(layer["macs_before"]),
            format_macs(layer["macs_after"]),
            percent_change(layer["macs_before"], layer["macs_after"]),
            format_params(layer["params_before"]),
            format_params(layer["params_after"]),
            percent_change(layer["params_before"], layer["params_after"]),
            _worst(layer["key_error"]),
            _worst(layer["value_error"]),
        )
        for layer in report["layers"]
    ]
    header = (
        "layer",
        "how it computes",
        "MACs before",
        "after",
        "change",
        "parameters before",
        "after",
        "change",
        "key error",
        "value error",
    )
    return tag(
        "div",
        table(rows, header, "Cost and errors of every layer", text_columns=2),
        tag(
            "p",
            "Errors are relative, at initialisation, in the metric of the calibration data; worst head.",
            class_="note",
        ),
    )


def _worst(errors: list[float]) -> str:
    return short(max(errors)) if errors else "exact"
