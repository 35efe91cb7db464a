"""Plots of an analysis: all layers side by side, and every head of every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

#: What the parts of the attention's energy and the three kinds of curves look like.
UNIFORM, PATTERN, VARYING = "#c9d3dc", "#1b4965", "#e4572e"
ATTENTION, KEYS, VALUES = "#6b7a89", "#1b4965", "#e4572e"
#: Errors below this are drawn at the bottom, or not at all.
SMALLEST_ERROR = 1e-3
#: Panels in a row of the figure of the heads.
PANELS = 5


def plot_layers(found: dict[str, Any]) -> Figure:
    """All layers in one figure: cumulative spectra, errors of keys and values by rank, shares of energy.

    Args:
        found: as :func:`csa2glmha.analysis.measure.analyse` gives it; a "title" of two lines is optional.
    """
    layers = found["layers"]
    height = 3.8 + 0.9 + 0.2 * len(layers)
    figure = Figure(figsize=(12.5, height), dpi=110, layout="constrained")
    # Two figures, so that the long names below do not push the plots above to the right.
    top, bottom = np.ravel(np.asarray(figure.subfigures(2, 1, height_ratios=[3.6, height - 3.8])))
    spectrum, keys, values = top.subplots(1, 3)
    colours = _colours(len(layers))
    for layer, colour in zip(layers, colours, strict=True):
        shares = np.mean(layer["cumulative"], axis=0)
        spectrum.plot(range(1, len(shares) + 1), shares, color=colour, linewidth=1.5)
        for axes, errors in ((keys, layer["key_error"]), (values, layer["value_error"])):
            _error_curve(axes, errors, color=colour, linewidth=1.5)
    widest = max((layer["head_channels"] for layer in layers), default=1)
    lowest = min((np.mean(layer["cumulative"], axis=0)[0] for layer in layers), default=0.0)
    spectrum.set_ylim(max(float(lowest) - 0.05, 0.0), 1.005)
    # Nearly all of the energy is in the first few: a logarithmic axis keeps them apart.
    spectrum.set_xscale("log", base=2)
    spectrum.set_xlim(1, max(widest, 2))
    spectrum.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    spectrum.yaxis.set_major_formatter(_percent())
    _dress(spectrum, "Attention: energy in the largest singular values", "singular values")
    for axes, what in ((keys, "Keys"), (values, "Values")):
        _log_errors(axes, widest)
        _dress(axes, f"{what}: smallest error at each rank", "rank")
    _bars(bottom.subplots(1, 1), layers, colours)
    if "title" in found:
        figure.suptitle(found["title"], fontsize=10, x=0.01, ha="left")
    return figure


def plot_heads(found: dict[str, Any]) -> Figure:
    """A panel for every layer: what is left of attention, keys and values at each rank, head by head.

    Of the attention it is the root of the energy behind the largest singular values, so that all curves are
    relative errors.
    """
    layers = found["layers"]
    columns = min(PANELS, max(len(layers), 1))
    rows = max(-(-len(layers) // columns), 1)
    figure = Figure(figsize=(2.9 * columns + 0.4, 2.2 * rows + 0.8), dpi=110, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(layers) :]:
        axes.set_axis_off()
    for axes, layer in zip(grid.flat, layers, strict=False):
        cumulative = np.asarray(layer["cumulative"])
        spectra = np.sqrt(np.clip(1 - cumulative, 0, None))
        for name, colour, heads in (
            ("attention", ATTENTION, spectra.tolist()),
            ("keys", KEYS, layer["key_error_heads"]),
            ("values", VALUES, layer["value_error_heads"]),
        ):
            for index, errors in enumerate(heads):
                _error_curve(
                    axes, errors, color=colour, linewidth=1.1, alpha=0.85, label=name if index == 0 else None
                )
        _log_errors(axes, layer["head_channels"])
        temperature = _span(layer["temperature"], "{:.2g}")
        static = _span([100 * share for share in layer["static_share"]], "{:.1f}")
        plural = "s" if layer["heads"] > 1 else ""
        axes.set_title(
            f"{layer['name']}\n{layer['heads']} head{plural}, temperature {temperature}, {static} % static",
            fontsize=6.5,
        )
        axes.tick_params(labelsize=7)
        axes.grid(color="#e8e8e8", linewidth=0.6)
    for axes in grid[-1]:
        axes.set_xlabel("rank", fontsize=8)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=3, fontsize=8, frameon=False)
    if "title" in found:
        figure.suptitle(
            f"Relative error at each rank, every head\n{found['title']}", fontsize=9, x=0.01, ha="left"
        )
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as its suffix says; the same figure gives the same bytes, SVG too."""
    kind = path.suffix[1:]
    with matplotlib.rc_context({"svg.hashsalt": "csa2glmha"}):
        figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)


def _bars(axes: Axes, layers: list[dict[str, Any]], colours: list[Any]) -> None:
    """Shares of the attention's energy, a bar a layer from the first at the top."""
    start = np.zeros(len(layers))
    places = np.arange(len(layers))
    for part, label, colour in (
        ("uniform_share", "uniform, 1/c everywhere", UNIFORM),
        ("pattern_share", "static pattern", PATTERN),
        ("varying_share", "varies between images", VARYING),
    ):
        widths = np.array([np.mean(layer[part]) for layer in layers])
        axes.barh(places, widths, left=start, color=colour, label=label, height=0.72)
        start = start + widths
    axes.set_yticks(places, [layer["name"] for layer in layers], fontsize=7.5)
    for tick, colour in zip(axes.get_yticklabels(), colours, strict=True):
        tick.set_color(colour)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(_percent())
    axes.tick_params(axis="x", labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Attention: what its energy is made of, mean of the heads", fontsize=9, loc="left")
    axes.legend(
        loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8, frameon=False, borderaxespad=0.2
    )


def _error_curve(axes: Axes, errors: list[float], **style: Any) -> None:
    """Errors above zero, at their ranks."""
    shown = [(rank, error) for rank, error in enumerate(errors, 1) if error > 0]
    if shown:
        axes.plot(*zip(*shown, strict=True), **style)


def _log_errors(axes: Axes, widest: int) -> None:
    axes.set_yscale("log")
    axes.set_ylim(SMALLEST_ERROR, 1.2)
    axes.set_yticks([1e-3, 1e-2, 1e-1, 1], ["0.1 %", "1 %", "10 %", "100 %"])
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    axes.set_xlim(0.5, max(widest, 2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7))


def _dress(axes: Axes, title: str, label: str) -> None:
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e8e8e8", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _percent() -> FuncFormatter:
    return FuncFormatter(lambda value, _: f"{100 * value:.0f} %")


def _colours(count: int) -> list[Any]:
    """From the first layer to the last; the map's own end is too bright on white."""
    ramp = matplotlib.colormaps["plasma"]
    return [ramp(0.82 * index / max(count - 1, 1)) for index in range(count)]


def _span(values: list[float], style: str) -> str:
    low, high = style.format(min(values)), style.format(max(values))
    return low if low == high else f"{low} to {high}"
