"""Where the names of points go, so that they cover neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence

Point = tuple[float, float]
Box = tuple[float, float, float, float]

_GAP = 8.0


def place_labels(
    wanted: Sequence[tuple[Point, str]],
    points: Sequence[Point],
    area: Box,
    letter: float,
    line: float,
) -> list[tuple[str, Point, str]]:
    """Labels that have room, in the order they were wanted.

    Args:
        wanted: point and label each, the most important first.
        points: all points, which labels keep off.
        area: left, top, right, bottom; labels stay inside.
        letter, line: width of a letter and height of a line, in the units of the points.

    Returns:
        label, its place (on the base line), and "", "middle" or "end": which part of it is there. Labels
        without room are left out.
    """
    taken: list[Box] = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    placed = []
    for (x, y), label in wanted:
        width = letter * len(label)
        for place, anchor in (
            ((x + _GAP, y + 4), ""),
            ((x - _GAP, y + 4), "end"),
            ((x, y - _GAP - 1), "middle"),
            ((x, y + _GAP + line - 4), "middle"),
            ((x + _GAP, y - _GAP), ""),
            ((x + _GAP, y + _GAP + 7), ""),
            ((x - _GAP, y - _GAP), "end"),
            ((x - _GAP, y + _GAP + 7), "end"),
        ):
            left = place[0] - {"": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, place[1] - line + 3, left + width, place[1] + 3)
            if _inside(box, area) and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                placed.append((label, place, anchor))
                break
    return placed


def _inside(box: Box, area: Box) -> bool:
    return box[0] >= area[0] and box[1] >= area[1] and box[2] <= area[2] and box[3] <= area[3] + 2


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
