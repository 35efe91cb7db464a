"""The spectra of the teacher's attention: how low its rank is, and what that predicts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from csa2glmha.report.html.axes import Axis, axis_of
from csa2glmha.report.html.charts import Series, chart, legend
from csa2glmha.report.html.markup import Markup, details, table, tag
from csa2glmha.report.html.numbers import TIMES, fixed, known, short

#: Shares of the energy whose ranks the table gives.
_SHARES = (0.9, 0.95, 0.99)
#: Smaller predicted errors are not drawn.
_LEAST_ERROR = 1e-4


def analysis_section(analysis: dict[str, Any]) -> Markup:
    """Cumulative energy of the attention, errors at every rank, temperature and static share per layer."""
    layers = analysis["layers"]
    colours = [depth_colour(index, len(layers)) for index in range(len(layers))]
    curves = [_mean_curve(layer["cumulative"]) for layer in layers]
    note = (
        f"Measured on {analysis['images']} images. The curves show how much of the energy of the attention "
        "maps the largest singular values hold, mean of the heads: the sooner a curve nears 1, the lower the "
        "rank that the layer needs. The static share is what is the same in every image."
    )
    return tag(
        "div",
        tag("p", note, class_="note"),
        depth_legend([layer["name"] for layer in layers], colours),
        _energy_chart(layers, curves, colours),
        tag(
            "div",
            _error_chart("key", layers, colours),
            _error_chart("value", layers, colours),
            _per_layer("mean temperature of the heads", layers, "temperature", "var(--rank-k)"),
            _per_layer("static share of the attention", layers, "static_share", "var(--rank-v)", top=1.0),
            class_="multiples pairs",
        ),
        details(
            "Spectra as a table",
            table(
                [_row(layer, curve) for layer, curve in zip(layers, curves, strict=True)],
                (
                    "layer",
                    f"heads {TIMES} channels",
                    *(f"rank for {share:.0%} of the energy" for share in _SHARES),
                    "temperature",
                    "static share",
                ),
                "Spectra of the attention of every layer",
            ),
            _curve_table(layers, curves),
        ),
    )


def depth_colour(index: int, count: int) -> str:
    """From blue at the input over red to orange at the output."""
    share = index / max(count - 1, 1)
    return f"hsl({225 + 165 * share:.0f} 62% 56%)"


def depth_legend(names: Sequence[str], colours: Sequence[str]) -> Markup:
    """What the colours of the layers mean; of many layers only the first and the last are named."""
    if len(names) <= 6:
        return legend([(name, colour, "line") for name, colour in zip(names, colours, strict=True)])
    ramp = tag("span", class_="ramp", style=f"background:linear-gradient(90deg,{','.join(colours)})")
    return tag("p", tag("span", names[0]), ramp, tag("span", names[-1]), class_="ramp-legend")


def _mean_curve(heads: list[list[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*heads, strict=True)]


def _energy_chart(layers: list[dict[str, Any]], curves: list[list[float]], colours: Sequence[str]) -> Markup:
    lowest = min(min(curve) for curve in curves)
    x = Axis("rank", 1, max(max(map(len, curves)), 2))
    y = Axis("share of the attention's energy", max(0.0, lowest - 0.03), 1.0)
    series = [
        Series(layer["name"], list(enumerate(curve, 1)), colour)
        for layer, curve, colour in zip(layers, curves, colours, strict=True)
    ]
    return chart("Cumulative share of the singular values' energy by rank, one line a layer", series, x, y)


def _error_chart(what: str, layers: list[dict[str, Any]], colours: Sequence[str]) -> Markup:
    series = [
        # Nobody asks for less, and the error at full rank, zero, has no place on a logarithmic axis.
        Series(
            layer["name"],
            [(rank, e) for rank, e in enumerate(layer[f"{what}_error"], 1) if e >= _LEAST_ERROR],
            colour,
        )
        for layer, colour in zip(layers, colours, strict=True)
    ]
    values = [error for each in series for _, error in each.points]
    x = Axis("rank", 1, max(2, *(len(layer[f"{what}_error"]) for layer in layers)))
    y = axis_of(f"predicted relative error of the {what}s", values, logarithmic=True)
    return tag(
        "div", chart(f"Predicted error of the {what}s by rank, one line a layer", series, x, y, room="half")
    )


def _per_layer(
    label: str, layers: list[dict[str, Any]], key: str, colour: str, top: float | None = None
) -> Markup:
    points = [(number, sum(layer[key]) / len(layer[key])) for number, layer in enumerate(layers, 1)]
    x = Axis("layer", 0.5, len(layers) + 0.5, ticks=range(1, len(layers) + 1))
    y = Axis(label, 0.0, top) if top else axis_of(label, [value for _, value in points], zero=True)
    notes = [f"{layer['name']}: {short(value)}" for layer, (_, value) in zip(layers, points, strict=True)]
    series = [Series(label, points, colour, dots="circle", notes=notes)]
    return tag("div", chart(f"{label.capitalize()}, of every layer", series, x, y, room="half"))


def _row(layer: dict[str, Any], curve: list[float]) -> list[str]:
    return [
        layer["name"],
        f"{layer['heads']} {TIMES} {layer['head_channels']}",
        *(
            str(next((rank for rank, value in enumerate(curve, 1) if value >= share), len(curve)))
            for share in _SHARES
        ),
        _range(layer["temperature"], 2),
        _range(layer["static_share"], 3),
    ]


def _range(values: list[float], digits: int) -> str:
    low, high = min(known(values), default=None), max(known(values), default=None)
    return fixed(low, digits) if low == high else f"{fixed(low, digits)} to {fixed(high, digits)}"


def _curve_table(layers: list[dict[str, Any]], curves: list[list[float]]) -> Markup:
    rows = [
        (
            layer["name"],
            str(rank),
            fixed(share, 4),
            _at(layer["key_error"], rank),
            _at(layer["value_error"], rank),
        )
        for layer, curve in zip(layers, curves, strict=True)
        for rank, share in enumerate(curve, 1)
    ]
    header = ("layer", "rank", "share of energy", "key error", "value error")
    return details("Every rank of every layer", table(rows, header, "Share of energy and errors by rank"))


def _at(values: list[float], rank: int) -> str:
    return short(values[rank - 1]) if rank <= len(values) else ""
