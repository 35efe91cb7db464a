"""Quality against cost, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from csa2glmha.metrics.outputs import KL_SCALE, PSNR_SCALE, Scale
from csa2glmha.report.schema_search import ParetoPoint
from csa2glmha.report.sections.scales import is_exact, with_unit

#: Line, colour and name of each kind.
STYLES = {"uniform": ("o-", "#1b4965", "one rank"), "auto": ("D--", "#e4572e", "searched")}
#: Of a search that was left the ranks alone.
RANKS_ALONE = ("d:", "#f2a65a", "searched, ranks alone")
#: Lines and colours of other methods, one after the other; their points go without names.
OTHER = (
    ("x:", "#7f8c8d"),
    ("+:", "#a569bd"),
    ("1:", "#5d6d7e"),
    ("2:", "#b7950b"),
    ("3:", "#ca6f1e"),
    ("4:", "#148f77"),
    ("*:", "#a93226"),
)
#: Lines and colours of one rank with narrower feed-forward networks, one after the other.
NARROWER = (("s-", "#2a9d8f"), ("^-", "#8e6c8a"), ("v-", "#bc8034"), ("P-", "#5b8c5a"))


def plot_pareto(path: Path, points: Sequence[ParetoPoint]) -> None:
    """Write a PNG or SVG (by the suffix) of agreement with the teacher against MACs and, if measured, time.

    Args:
        path: of the file.
        points: as sweep.json has them.
    """
    timed = any(point.time_ratio is not None for point in points if point.kind != "teacher")
    scale = KL_SCALE if any(point.kl_to_teacher is not None for point in points) else PSNR_SCALE
    costs = ["MACs, share of the teacher's"]
    if timed:
        costs.append("time in ONNX Runtime, share of the teacher's")
    figure = Figure(figsize=(5.6 * len(costs), 4.4), dpi=110, layout="constrained")
    plots = figure.subplots(1, len(costs), squeeze=False)[0]
    for index, (plot, label) in enumerate(zip(plots, costs, strict=True)):
        for line in _lines(points):
            _draw(plot, line, scale, timed=index == 1)
        plot.set_xlabel(label, fontsize=9)
        plot.set_ylabel(with_unit(scale, scale.label), fontsize=9)
        if not scale.unit:
            plot.set_yscale("log")
        plot.tick_params(labelsize=8)
        plot.grid(alpha=0.25)
        plot.margins(x=0.2, y=0.12)  # room for the names beside the first points
    handles, titles = plots[0].get_legend_handles_labels()
    if handles:
        # Many lines leave no room for it among them.
        beside = len(handles) > 5
        place: dict[str, Any] = {"loc": "outside right upper"} if beside else {}
        (figure if beside else plots[0]).legend(handles, titles, fontsize=8, frameon=False, **place)
    figure.savefig(path, format=path.suffix.lstrip("."))


class _Line(NamedTuple):
    """Points that a line joins, and how it looks."""

    points: list[ParetoPoint]
    form: str
    colour: str
    title: str
    named: bool = True


def _draw(plot: Axes, line: _Line, scale: Scale, timed: bool) -> None:
    """Its points against MACs or time, as far as both figures are known."""
    known = sorted(
        # The legend says what is the same for a whole line.
        (cost, agreement, point.label.partition(" ffn ")[0].removesuffix(":ffn=full"))
        for point in line.points
        for cost in [point.time_ratio if timed else point.macs_ratio]
        if cost is not None
        and (agreement := point.to_teacher) is not None
        # A lossless student is at infinity, as far as rounding goes.
        and not is_exact(scale, agreement)
    )
    if not known:
        return
    xs, ys = [x for x, _, _ in known], [y for _, y, _ in known]
    plot.plot(xs, ys, line.form, color=line.colour, label=line.title, markersize=5)
    for x, y, name in known if line.named else ():
        # Curves rise to the right, so above and to the left of a point there is room.
        plot.annotate(
            name, (x, y), (-6, 4), textcoords="offset points", fontsize=8, color=line.colour, ha="right"
        )


def _lines(points: Sequence[ParetoPoint]) -> list[_Line]:
    """One a kind, share of feed-forward channels, and other method."""

    def of(kind: str, share: float | None) -> list[ParetoPoint]:
        return [point for point in points if (point.kind, point.ffn) == (kind, share)]

    lines = [_Line(of(kind, None), *style) for kind, style in STYLES.items()]
    lines.append(_Line(of("auto", 1.0), *RANKS_ALONE))
    uniform = [point for point in points if point.kind == "uniform"]
    shares = sorted({point.ffn for point in uniform if point.ffn is not None}, reverse=True)
    for number, share in enumerate(shares):
        look = NARROWER[number % len(NARROWER)]
        lines.append(_Line(of("uniform", share), *look, f"one rank, --ffn {share:g}"))
    methods = dict.fromkeys(point.method for point in points if point.method is not None)
    for number, method in enumerate(methods):
        found = [point for point in points if point.method == method]
        lines.append(_Line(found, *OTHER[number % len(OTHER)], method, named=False))
    return [line for line in lines if line.points]
