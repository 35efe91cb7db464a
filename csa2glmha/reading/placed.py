"""Modules whose output depends on where in the image their pixels lie.

Where an image goes through a network in tiles, a module sees a part of it. Most modules do the same with it
wherever it lies; these have to be told.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from csa2glmha.core.errors import Csa2GlmhaError


@dataclass(frozen=True)
class Extent:
    """A part of the rows (or columns) of an image.

    Attributes:
        start, length: of the part.
        whole: of the image.
    """

    start: int
    length: int
    whole: int

    def of_maps(self, size: int) -> Extent:
        """The same in feature maps that have ``size`` rows of it.

        Raises:
            Csa2GlmhaError: the image or the start of the part is no whole number of their rows.
        """
        start, whole = self.start * size, self.whole * size
        if start % self.length or whole % self.length:
            raise Csa2GlmhaError(
                f"tiles cannot share the network's maps: of {self.length} pixels it makes {size} rows or "
                "columns, and the tiles' borders fall within one; give --tile-mode plain"
            )
        return Extent(start // self.length, size, whole // self.length)


@dataclass(frozen=True)
class Place:
    """Where the pixels that a module sees lie in the image."""

    rows: Extent
    columns: Extent


class PlacedModule(nn.Module):
    """A module that can be told the place; ``forward`` is for the whole image."""

    @abstractmethod
    def forward_at(self, place: Place, *args: Any) -> Tensor:
        """That part of the output for the whole image.

        Args:
            place: of what the network sees.
            args: of the module's call.
        """
