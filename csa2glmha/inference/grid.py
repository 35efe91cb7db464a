"""Dividing an image into tiles with context, and choosing some that are spread over it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from csa2glmha.core.errors import Csa2GlmhaError, UsageError
from csa2glmha.reading.placed import Extent, Place

# Fractions of the plastic number: multiples of these fill a square evenly, however many are taken
# (Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018).
_EVEN_FRACTIONS = (0.7548776662466927, 0.5698402909980532)


@dataclass(frozen=True)
class Span:
    """One axis of a tile, in pixels of the image.

    Attributes:
        start, length: what the network sees.
        core_start, core_length: what the tile answers for. The cores divide the image without a rest.
        whole: rows (or columns) of the image.
    """

    start: int
    length: int
    core_start: int
    core_length: int
    whole: int

    def core(self, size: int) -> slice:
        """The core in a feature map of ``size`` rows (or columns) that was made of the tile.

        Raises:
            Csa2GlmhaError: it begins or ends within a row (or column).
        """
        first, length = (self.core_start - self.start) * size, self.core_length * size
        if first % self.length or length % self.length:
            raise Csa2GlmhaError(
                f"tiles cannot be put together: the network makes {size} rows or columns of {self.length} "
                f"pixels, and the tiles' borders fall within one; give more --memory, so that images go "
                f"through it whole"
            )
        return slice(first // self.length, (first + length) // self.length)


@dataclass(frozen=True)
class Tile:
    """A part of an image: its rows and its columns."""

    rows: Span
    columns: Span

    @property
    def core_pixels(self) -> int:
        """Pixels that the tile answers for."""
        return self.rows.core_length * self.columns.core_length

    @property
    def place(self) -> Place:
        """Where what the network sees lies in the image."""
        rows, columns = (Extent(each.start, each.length, each.whole) for each in (self.rows, self.columns))
        return Place(rows, columns)

    def core(self, height: int, width: int) -> tuple[slice, slice]:
        """The core in a feature map of ``height`` x ``width`` that was made of the tile."""
        return self.rows.core(height), self.columns.core(width)

    def core_of(self, maps: Tensor) -> Tensor:
        """The core of feature maps (..., H, W) that were made of the tile, a view."""
        rows, columns = self.core(*maps.shape[-2:])
        return maps[..., rows, columns]


def divide(height: int, width: int, size: int, overlap: int, multiple: int) -> list[Tile]:
    """Tiles of one size that cover an image, in reading order.

    Args:
        height, width: of the image, multiples of ``multiple``.
        size: side of the tiles, rounded down to a multiple of ``multiple``; an image that is smaller has
            smaller ones.
        overlap: pixels around the core, at least, that a tile also sees; rounded up likewise.
        multiple: starts and sizes are multiples of it.

    Raises:
        UsageError: the overlap leaves nothing of the tiles.
    """
    rows = divide_axis(height, size, overlap, multiple)
    columns = divide_axis(width, size, overlap, multiple)
    return [Tile(row, column) for row in rows for column in columns]


def tile_step(size: int, overlap: int, multiple: int) -> int:
    """Pixels from one tile to the next at most, of sizes and overlaps as :func:`divide` takes them.

    Raises:
        UsageError: the overlap leaves nothing of the tiles.
    """
    size, overlap = size // multiple * multiple, -(-overlap // multiple) * multiple
    step = size - 2 * overlap
    if step < multiple:
        raise UsageError(
            f"--tile {size}: with {overlap} pixels of overlap on either side nothing is left; "
            f"give at least {2 * overlap + multiple}, or a smaller --overlap"
        )
    return step


def divide_axis(length: int, size: int, overlap: int, multiple: int) -> list[Span]:
    """The same along one axis."""
    size = size // multiple * multiple
    if length <= size:
        return [Span(0, length, 0, length, length)]
    step = tile_step(size, overlap, multiple)
    gaps = -(-(length - size) // step)
    # Evenly spread, so that what is left over becomes context for all of them.
    starts = [(length - size) // multiple * index // gaps * multiple for index in range(gaps + 1)]
    middles = [
        (start + size + following) // 2 // multiple * multiple for start, following in pairwise(starts)
    ]
    edges = [0, *middles, length]
    return [
        Span(start, size, first, last - first, length)
        for start, first, last in zip(starts, edges[:-1], edges[1:], strict=True)
    ]


def spread(tiles: list[Tile], count: int) -> list[Tile]:
    """``count`` of the tiles of :func:`divide`, evenly spread over the image; all, if there are not more.

    Fewer are the first of more.
    """
    columns = sum(tile.rows == tiles[0].rows for tile in tiles)
    rows = len(tiles) // columns
    chosen: dict[int, None] = {}
    index = 0
    while len(chosen) < min(count, len(tiles)):
        down, across = ((0.5 + index * fraction) % 1 for fraction in _EVEN_FRACTIONS)
        chosen[int(down * rows) * columns + int(across * columns)] = None
        index += 1
    return [tiles[position] for position in chosen]


def extent_of(tiles: list[Tile]) -> str:
    """Width and height of tiles, which are rounded to what the network takes and not beyond the image."""
    return f"{tiles[0].columns.length}x{tiles[0].rows.length}"
