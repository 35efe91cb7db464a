"""Quality against cost, as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from csa2glmha.metrics.outputs import KL_SCALE, PSNR_SCALE
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


#: Decibels below which the axis of what is lost is linear.
_NEAR_ZERO = {"linthresh": 0.01, "linscale": 0.5}


def plot_pareto(path: Path, points: Sequence[ParetoPoint]) -> None:
    """Write a PNG or SVG (by the suffix): agreement with the teacher against MACs.

    Beside it, where they are known, the change of the PSNR to the ground truth, and agreement against time.

    Args:
        path: of the file.
        points: as sweep.json has them.
    """
    panels = _panels(points)
    figure = Figure(figsize=(5.6 * len(panels), 4.4), dpi=110, layout="constrained")
    plots = figure.subplots(1, len(panels), squeeze=False)[0]
    for plot, panel in zip(plots, panels, strict=True):
        for line in _lines(points):
            _draw(plot, line, panel)
        panel.dress(plot)
    handles, titles = plots[0].get_legend_handles_labels()
    if handles:
        # Many lines leave no room for it among them.
        beside = len(handles) > 5
        place: dict[str, Any] = {"loc": "outside right upper"} if beside else {}
        (figure if beside else plots[0]).legend(handles, titles, fontsize=8, frameon=False, **place)
    figure.savefig(path, format=path.suffix.lstrip("."))


@dataclass(frozen=True)
class _Panel:
    """One plot of the figure.

    Attributes:
        cost, quality: of a point, as far as they are known.
        labels: of the two.
        scale: of the quality: its axis, and the options of that.
    """

    cost: Callable[[ParetoPoint], float | None]
    quality: Callable[[ParetoPoint], float | None]
    labels: tuple[str, str]
    scale: tuple[str, dict[str, float]] = ("linear", {})

    def dress(self, plot: Axes) -> None:
        """Set all but the points."""
        plot.set_xlabel(self.labels[0], fontsize=9)
        plot.set_ylabel(self.labels[1], fontsize=9)
        kind, options = self.scale
        plot.set_yscale(kind, **options)
        if kind == "symlog":
            plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g}" if value else "0"))
        plot.tick_params(labelsize=8)
        plot.grid(alpha=0.25)
        plot.margins(x=0.25, y=0.12)  # room for the names beside the first points


def _panels(points: Sequence[ParetoPoint]) -> list[_Panel]:
    students = [point for point in points if point.kind != "teacher"]
    scale = KL_SCALE if any(point.kl_to_teacher is not None for point in points) else PSNR_SCALE

    def to_teacher(point: ParetoPoint) -> float | None:
        # A lossless student is at infinity, as far as rounding goes.
        return None if point.to_teacher is None or is_exact(scale, point.to_teacher) else point.to_teacher

    def lost(point: ParetoPoint) -> float | None:
        return None if point.kind == "teacher" else point.psnr_drop

    macs, time = "MACs, share of the teacher's", "time in ONNX Runtime, share of the teacher's"
    agreement = with_unit(scale, scale.label)
    kind: tuple[str, dict[str, float]] = ("linear" if scale.unit else "log", {})
    panels = [_Panel(lambda point: point.macs_ratio, to_teacher, (macs, agreement), kind)]
    if any(lost(point) is not None for point in students):
        # From thousandths of a decibel to several, of either sign.
        label = "change of the PSNR to the ground truth, dB"
        panels.append(_Panel(lambda point: point.macs_ratio, lost, (macs, label), ("symlog", _NEAR_ZERO)))
    if any(point.time_ratio is not None for point in students):
        panels.append(_Panel(lambda point: point.time_ratio, to_teacher, (time, agreement), kind))
    return panels


class _Line(NamedTuple):
    """Points that a line joins, and how it looks."""

    points: list[ParetoPoint]
    form: str
    colour: str
    title: str
    named: bool = True


def _draw(plot: Axes, line: _Line, panel: _Panel) -> None:
    """Its points, as far as both figures are known."""
    known = sorted(
        # The legend says what is the same for a whole line.
        (cost, quality, point.label.partition(" ffn ")[0].removesuffix(":ffn=full"))
        for point in line.points
        if (cost := panel.cost(point)) is not None and (quality := panel.quality(point)) is not None
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
