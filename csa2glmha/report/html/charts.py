"""Charts with two axes, as inline SVG: lines, points, or both.

A drawing is scaled as a whole, its letters too, so most charts are drawn twice: once for a wide screen and
once for a narrow one. The style sheet shows the one that fits.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from csa2glmha.report.blocks import Chart, Marker, Point, Series
from csa2glmha.report.html.labels import place_labels
from csa2glmha.report.html.markup import join, tag
from csa2glmha.report.sections.axes import Axis


@dataclass(frozen=True)
class ChartSize:
    """A drawing's width and height, and that of its letters; the style sheet has the letters' too."""

    width: int
    height: int
    letters: float


SIZES = {
    "wide": ChartSize(960, 360, 14.0),
    "half": ChartSize(480, 290, 13.5),
    "third": ChartSize(330, 235, 12.5),
    "narrow": ChartSize(360, 270, 12.5),
}
#: The drawings of a chart that takes the page's width, half of it, a third of it.
_DRAWINGS = {"wide": ("wide", "narrow"), "half": ("half", "narrow"), "third": ("third",)}
_TOP, _RIGHT, _BOTTOM = 32, 14, 44
#: Width of a letter as a share of its height, about.
_LETTER = 0.58


def chart(drawn: Chart) -> Markup:
    """A chart of series."""
    return in_sizes(
        drawn.label, lambda plot: _content(plot, drawn.series, drawn.markers), drawn.x, drawn.y, drawn.room
    )


@dataclass(frozen=True)
class Plot:
    """The area inside the axes, in the drawing's pixels."""

    left: float
    top: float
    right: float
    bottom: float
    x: Axis
    y: Axis
    letters: float

    def place(self, point: Point) -> Point:
        """Where a value is drawn."""
        across, up = self.x.at(point[0]), self.y.at(point[1])
        return (
            self.left + across * (self.right - self.left),
            self.bottom - up * (self.bottom - self.top),
        )


def in_sizes(
    label: str, draw: Callable[[Plot], Sequence[Markup]], x: Axis, y: Axis, room: str = "wide"
) -> Markup:
    """Axes and what is drawn between them, in the sizes that the page needs."""
    return join([_drawing(label, name, draw, x, y) for name in _DRAWINGS[room]])


def legend(entries: Sequence[tuple[str, str, str]]) -> Markup:
    """What the colours mean.

    Args:
        entries: name, CSS colour, and look: "line", "dashed", "box", "circle", "square", ...
    """
    return tag(
        "ul",
        [tag("li", _swatch(look, colour), name) for name, colour, look in entries],
        class_="legend",
    )


def _swatch(look: str, colour: str) -> Markup:
    middle = (11.0, 6.0)
    if look in ("line", "dashed"):
        drawn = tag("line", x1=1, y1=6, x2=21, y2=6, class_=f"line {look}", stroke_width=3)
    elif look == "box":
        drawn = tag("rect", x=4, y=0, width=14, height=12, rx=2, class_="dot")
    else:
        drawn = dot(look, middle, 5)
    return tag("svg", drawn, viewBox="0 0 22 12", aria_hidden="true", style=f"--c:{colour}")


def _drawing(
    label: str,
    name: str,
    draw: Callable[[Plot], Sequence[Markup]],
    x: Axis,
    y: Axis,
) -> Markup:
    size = SIZES[name]
    width, height = size.width, size.height
    rows = y.marks(max(3, height // 62))
    left = 10 + _LETTER * size.letters * max((len(y.show(mark)) for mark in rows), default=1)
    plot = Plot(left, _TOP, width - _RIGHT, height - _BOTTOM, x, y, size.letters)
    grid: list[Markup] = [text(y.label, (0, 14), "axis-label")]
    for mark in rows:
        _, across = plot.place((x.low, mark))
        grid.append(tag("line", x1=plot.left, x2=plot.right, y1=across, y2=across, class_="grid"))
        grid.append(text(y.show(mark), (plot.left - 6, across + 4), "tick end"))
    columns = x.marks(width // 85)
    for mark in columns:
        down, _ = plot.place((mark, y.low))
        grid.append(tag("line", x1=down, x2=down, y1=plot.bottom, y2=plot.bottom + 4, class_="axis"))
        grid.append(text(x.show(mark), (down, plot.bottom + 18), "tick middle"))
    grid.append(tag("line", x1=plot.left, x2=plot.right, y1=plot.bottom, y2=plot.bottom, class_="axis"))
    if x.label:
        grid.append(text(x.label, (plot.right, height - 6), "axis-label end"))
    return tag(
        "svg",
        grid,
        draw(plot),
        class_=f"chart {name}",
        viewBox=f"0 0 {width} {height}",
        role="img",
        aria_label=label,
    )


def _content(plot: Plot, series: Sequence[Series], markers: Sequence[Marker]) -> list[Markup]:
    drawn: list[Markup] = []
    for marker in markers:
        down, _ = plot.place((marker.x, plot.y.low))
        drawn.append(tag("line", x1=down, x2=down, y1=plot.top, y2=plot.bottom, class_="marker"))
        anchor = "end" if down > (plot.left + plot.right) / 2 else ""
        shift = -5 if anchor else 5
        drawn.append(text(marker.text, (down + shift, plot.bottom - 8), f"marker-text {anchor}"))
    for each in series:
        places = [plot.place(point) for point in each.points]
        inner: list[Markup] = []
        if each.line and len(places) > 1:
            inner.append(
                tag(
                    "polyline",
                    points=" ".join(f"{across:.1f},{down:.1f}" for across, down in places),
                    class_="line dashed" if each.dashed else "line",
                    stroke_width=each.width,
                )
            )
            if not each.dots:
                inner.append(tag("title", each.name))
        if each.dots:
            notes = [*each.notes, *([""] * (len(places) - len(each.notes)))]
            inner += [dot(each.dots, place, 4.5, note) for place, note in zip(places, notes, strict=True)]
        drawn.append(tag("g", inner, style=f"--c:{each.colour}"))
    return drawn + _labels(plot, series)


def _labels(plot: Plot, series: Sequence[Series]) -> list[Markup]:
    wanted = [
        (plot.place(point), label)
        for each in series
        for point, label in zip(each.points, each.labels, strict=False)
        if label
    ]
    taken = [plot.place(point) for each in series if each.dots for point in each.points]
    for each in series:
        if each.line:
            taken += _along([plot.place(point) for point in each.points])
    area = (plot.left, plot.top, plot.right, plot.bottom)
    return [
        text(label, at, f"label {anchor}")
        for label, at, anchor in place_labels(wanted, taken, area, _LETTER * plot.letters, 1.2 * plot.letters)
    ]


def _along(places: Sequence[Point]) -> list[Point]:
    """Points on a line, near enough to each other that no word fits between them."""
    found = []
    for (x, y), (x_next, y_next) in itertools.pairwise(places):
        steps = 1 + int(math.hypot(x_next - x, y_next - y) / 8)
        found += [(x + (x_next - x) * i / steps, y + (y_next - y) * i / steps) for i in range(steps)]
    return found


def text(content: str, at: Point, kind: str) -> Markup:
    """Words in a drawing; ``kind`` is their class, "middle" or "end" the part of them at the point."""
    return tag("text", content, x=f"{at[0]:.1f}", y=f"{at[1]:.1f}", class_=kind.strip())


def dot(shape: str, at: Point, radius: float, note: str = "") -> Markup:
    """A point of one of the shapes, with a note for the mouse."""
    x, y = at
    title = tag("title", note) if note else None
    if shape == "square":
        side = 1.8 * radius
        return tag(
            "rect",
            title,
            x=f"{x - side / 2:.1f}",
            y=f"{y - side / 2:.1f}",
            width=f"{side:.1f}",
            height=f"{side:.1f}",
            class_="dot",
        )
    corners = {
        "diamond": ((0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)),
        "triangle": ((0, -1.25), (1.2, 0.95), (-1.2, 0.95)),
        "down": ((0, 1.25), (1.2, -0.95), (-1.2, -0.95)),
    }.get(shape)
    if corners is None:
        return tag("circle", title, cx=f"{x:.1f}", cy=f"{y:.1f}", r=radius, class_="dot")
    points = " ".join(f"{x + radius * across:.1f},{y + radius * down:.1f}" for across, down in corners)
    return tag("polygon", title, points=points, class_="dot")
