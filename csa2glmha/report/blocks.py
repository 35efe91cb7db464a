"""What a report is made of, for people: sections of blocks, which Markdown and HTML render."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Union

from csa2glmha.metrics.comparisons import Comparison
from csa2glmha.report.schema import Comparisons, Layer
from csa2glmha.report.sections.axes import Axis

Point = tuple[float, float]


@dataclass(frozen=True)
class Note:
    """A paragraph; quiet ones explain what stands beside them."""

    text: str
    quiet: bool = True


@dataclass(frozen=True)
class Heading:
    """Of a part of a section, level 3, or of a part of that."""

    text: str
    level: int = 3


@dataclass(frozen=True)
class Named:
    """A cell of a table: a name, and in smaller letters what it is."""

    name: str
    detail: str


Cell = str | Named


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        header: the columns' headings.
        rows: cells; the first of a row is its heading.
        label: what the table is, for those who do not see it.
        text_columns: so many columns are text, the others numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    label: str
    text_columns: int = 1


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Series:
    """What belongs together in a chart.

    Attributes:
        name: for the legend.
        points: (x, y) each, in the axes' units.
        colour: any CSS colour, one of the style sheet's as "var(--student)".
        line: points are joined.
        dots: points are drawn; "circle", "square", "diamond" or "triangle", "" for none.
        dashed: the line is.
        width: of the line, in pixels.
        notes: what is shown where the mouse rests on a point, one per point.
        labels: what is written beside the points, where there is room; one per point.
    """

    name: str
    points: Sequence[Point]
    colour: str
    line: bool = True
    dots: str = ""
    dashed: bool = False
    width: float = 2.0
    notes: Sequence[str] = field(default=())
    labels: Sequence[str] = field(default=())


@dataclass(frozen=True)
class Marker:
    """A vertical line with a few words at its top."""

    x: float
    text: str


@dataclass(frozen=True)
class Chart:
    """A chart of series.

    Attributes:
        label: what it shows, for those who do not see it.
        series: drawn in this order, later ones on top.
        x, y: the axes.
        markers: vertical lines.
        room: "wide", or "half" and "third" for charts that stand beside others.
    """

    label: str
    series: Sequence[Series]
    x: Axis
    y: Axis
    markers: Sequence[Marker] = ()
    room: str = "wide"


@dataclass(frozen=True)
class RankColumns:
    """The ranks of every layer as columns before the channels that its heads have."""

    label: str
    layers: Sequence[Layer]
    parts: Sequence[tuple[str, str, str]]
    x: Axis
    y: Axis


@dataclass(frozen=True)
class Legend:
    """What colours mean: name, CSS colour, and look ("line", "dashed", "box", "circle", ...) each."""

    entries: Sequence[tuple[str, str, str]]

    @classmethod
    def of(cls, series: Sequence[Series]) -> Legend:
        """The legend of a chart's series."""
        return cls(
            [(each.name, each.colour, each.dots or ("dashed" if each.dashed else "line")) for each in series]
        )


@dataclass(frozen=True)
class Ramp:
    """Colours from the first layer to the last."""

    first: str
    last: str
    colours: Sequence[str]


@dataclass(frozen=True)
class Bar:
    """A figure of one layer, before and after; shares of the largest of its kind, in percent."""

    what: str
    before: float
    after: float
    text: str
    change: str


@dataclass(frozen=True)
class LayerBars:
    """A row of bars for every layer, the names of the columns above."""

    header: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Bar]]]


@dataclass(frozen=True)
class Gallery:
    """Pictures of held-out images, with their figures in the same order."""

    comparisons: Comparisons
    images: Sequence[Comparison]
    searched: bool = False


@dataclass(frozen=True)
class Group:
    """Blocks that belong together; the kind says how a page arranges them."""

    blocks: Sequence[Block]
    kind: str = ""


@dataclass(frozen=True)
class Fold:
    """What a page folds away until it is asked for; text leaves out what is too long for it."""

    summary: str
    blocks: Sequence[Block]
    too_long_for_text: bool = False


Block = Union[  # noqa: UP007 - "|" takes no forward reference
    Note, Heading, Table, Facts, Chart, RankColumns, Legend, Ramp, LayerBars, Gallery, Group, Fold
]


@dataclass(frozen=True)
class Section:
    """A part of the report: its anchor, its words in the navigation, its heading, and what is in it."""

    name: str
    link: str
    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Card:
    """One important figure; ``bar`` is what is left of the teacher's, both in percent of the larger one."""

    name: str
    number: str
    unit: str
    note: str
    bar: tuple[float, float] | None = None


@dataclass(frozen=True)
class Summary:
    """The head of the report."""

    file: str
    lead: str
    facts: Sequence[str]
    search: str | None
    cards: Sequence[Card]
    figures: Table
    notes: Sequence[str]
    pictures: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Document:
    """A whole report, for people."""

    title: str
    made_by: str
    summary: Summary
    sections: Sequence[Section]
