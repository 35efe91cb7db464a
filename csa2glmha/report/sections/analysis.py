"""The spectra of the teacher's attention: how low its rank is, and what that predicts."""

from __future__ import annotations

from collections.abc import Sequence

from csa2glmha.report.blocks import Block, Chart, Fold, Group, Legend, Note, Ramp, Series, Table
from csa2glmha.report.part import Figure
from csa2glmha.report.schema import Analysis, LayerSpectrum, Report
from csa2glmha.report.sections.axes import Axis, axis_of
from csa2glmha.report.sections.numbers import TIMES, finite, fixed, known, short

#: Shares of the energy whose ranks the table gives.
_SHARES = (0.9, 0.95, 0.99)
#: Smaller predicted errors are not drawn.
_LEAST_ERROR = 1e-4

Layers = Sequence[LayerSpectrum]


def analysis_blocks(report: Report) -> list[Block]:
    """Cumulative energy of the attention, errors at every rank, temperature and static share per layer."""
    analysis = report.analysis
    return [] if analysis is None or not analysis.layers else _blocks(analysis)


def _blocks(analysis: Analysis) -> list[Block]:
    layers = analysis.layers
    colours = [depth_colour(index, len(layers)) for index in range(len(layers))]
    curves = [_mean_curve(layer.cumulative) for layer in layers]
    note = (
        f"Measured on {analysis.images} images. The curves show how much of the energy of the attention "
        "maps the largest singular values hold, mean of the heads: the sooner a curve nears 1, the lower the "
        "rank that the layer needs. The static share is what is the same in every image."
    )
    temperatures = [layer.temperature for layer in layers]
    shares = [layer.static_share for layer in layers]
    header = (
        *("layer", f"heads {TIMES} channels"),
        *(f"rank for {share:.0%} of the energy" for share in _SHARES),
        *("temperature", "static share"),
    )
    rows = [_row(layer, curve) for layer, curve in zip(layers, curves, strict=True)]
    charts = [
        _error_chart("key", layers, [layer.key_error for layer in layers], colours),
        _error_chart("value", layers, [layer.value_error for layer in layers], colours),
        _per_layer("mean temperature of the heads", layers, temperatures, "var(--rank-k)"),
        _per_layer("static share of the attention", layers, shares, "var(--rank-v)", top=1.0),
    ]
    return [
        Note(note),
        depth_legend([layer.name for layer in layers], colours),
        _energy_chart(layers, curves, colours),
        Group(charts, "multiples pairs"),
        Fold(
            "Spectra as a table",
            [Table(header, rows, "Spectra of the attention of every layer"), _curve_table(layers, curves)],
        ),
    ]


def depth_colour(index: int, count: int) -> str:
    """From blue at the input over red to orange at the output."""
    share = index / max(count - 1, 1)
    return f"hsl({225 + 165 * share:.0f} 62% 56%)"


def depth_legend(names: Sequence[str], colours: Sequence[str]) -> Block:
    """What the colours of the layers mean; of many layers only the first and the last are named."""
    if len(names) <= 6:
        return Legend([(name, colour, "line") for name, colour in zip(names, colours, strict=True)])
    return Ramp(names[0], names[-1], colours)


def _mean_curve(heads: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(values) for values in zip(*heads, strict=True)]


def _energy_chart(layers: Layers, curves: list[list[float]], colours: Sequence[str]) -> Block:
    lowest = min(min(curve) for curve in curves)
    x = Axis("rank", 1, max(max(map(len, curves)), 2))
    y = Axis("share of the attention's energy", max(0.0, lowest - 0.03), 1.0)
    series = [
        Series(layer.name, list(enumerate(curve, 1)), colour)
        for layer, curve, colour in zip(layers, curves, colours, strict=True)
    ]
    return Chart("Cumulative share of the singular values' energy by rank, one line a layer", series, x, y)


def _error_chart(
    what: str, layers: Layers, errors: Sequence[Sequence[Figure]], colours: Sequence[str]
) -> Block:
    series = [
        # Nobody asks for less, and the error at full rank, zero, has no place on a logarithmic axis.
        Series(
            layer.name,
            [
                (rank, error)
                for rank, each in enumerate(values, 1)
                if (error := finite(each)) is not None and error >= _LEAST_ERROR
            ],
            colour,
        )
        for layer, values, colour in zip(layers, errors, colours, strict=True)
    ]
    drawn = [error for each in series for _, error in each.points]
    x = Axis("rank", 1, max(2, *map(len, errors)))
    y = axis_of(f"predicted relative error of the {what}s", drawn, logarithmic=True)
    label = f"Predicted error of the {what}s by rank, one line a layer"
    return Group([Chart(label, series, x, y, room="half")])


def _per_layer(
    label: str, layers: Layers, values: Sequence[Sequence[Figure]], colour: str, top: float | None = None
) -> Block:
    points = [
        (number, sum(heads) / len(heads)) for number, each in enumerate(values, 1) if (heads := known(each))
    ]
    x = Axis("layer", 0.5, len(layers) + 0.5, ticks=range(1, len(layers) + 1))
    y = Axis(label, 0.0, top) if top else axis_of(label, [value for _, value in points], zero=True)
    notes = [f"{layers[number - 1].name}: {short(value)}" for number, value in points]
    series = [Series(label, points, colour, dots="circle", notes=notes)]
    return Group([Chart(f"{label.capitalize()}, of every layer", series, x, y, room="half")])


def _row(layer: LayerSpectrum, curve: list[float]) -> list[str]:
    return [
        layer.name,
        f"{layer.heads} {TIMES} {layer.head_channels}",
        *(
            str(next((rank for rank, value in enumerate(curve, 1) if value >= share), len(curve)))
            for share in _SHARES
        ),
        _range(layer.temperature, 2),
        _range(layer.static_share, 3),
    ]


def _range(values: Sequence[Figure], digits: int) -> str:
    low, high = min(known(values), default=None), max(known(values), default=None)
    return fixed(low, digits) if low == high else f"{fixed(low, digits)} to {fixed(high, digits)}"


def _curve_table(layers: Layers, curves: list[list[float]]) -> Block:
    rows = [
        (layer.name, str(rank), fixed(share, 4), _at(layer.key_error, rank), _at(layer.value_error, rank))
        for layer, curve in zip(layers, curves, strict=True)
        for rank, share in enumerate(curve, 1)
    ]
    header = ("layer", "rank", "share of energy", "key error", "value error")
    table = Table(header, rows, "Share of energy and errors by rank")
    return Fold("Every rank of every layer", [table], too_long_for_text=True)


def _at(values: Sequence[Figure], rank: int) -> str:
    return short(values[rank - 1]) if rank <= len(values) else ""
