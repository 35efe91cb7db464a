"""The chart of ranks: three columns for every layer, before the channels that its heads have."""

from __future__ import annotations

from markupsafe import Markup

from csa2glmha.report.blocks import RankColumns
from csa2glmha.report.html.charts import Plot, in_sizes
from csa2glmha.report.html.markup import tag
from csa2glmha.report.schema import Layer

#: Of the room that a layer has, so much is its columns'.
_COLUMN_SHARE = 0.74


def rank_chart(ranks: RankColumns) -> Markup:
    """The drawing."""

    def draw(plot: Plot) -> list[Markup]:
        return [_columns(plot, number, layer, ranks) for number, layer in enumerate(ranks.layers, 1)]

    return in_sizes(ranks.label, draw, ranks.x, ranks.y)


def _columns(plot: Plot, number: int, layer: Layer, ranks: RankColumns) -> Markup:
    full = layer.head_channels
    left, _ = plot.place((number - _COLUMN_SHARE / 2, 0))
    right, top = plot.place((number + _COLUMN_SHARE / 2, full))
    width = (right - left) / len(ranks.parts)
    drawn = [_column(left, top, right - left, plot.bottom, "var(--track)")]
    words = []
    for index, (field, name, colour) in enumerate(ranks.parts):
        rank: int = getattr(layer, field)
        _, height = plot.place((number, rank))
        kind = "dot pale" if rank == full else "dot"
        drawn.append(_column(left + index * width, height, width, plot.bottom, colour, 0.12, kind))
        words.append(f"{name} {rank}")
    return tag("g", tag("title", f"{layer.name}: {', '.join(words)}, of {full}"), drawn)


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
