"""The pixels of an image that moments of neighbourhoods are taken at.

Neighbours say nearly the same, so a moment of a 3 x 3 neighbourhood needs only some of an image's pixels: one
at a random place in every cell of a grid. The moment of (9c)^2 products is what costs most in the statistics
of a layer, and its sampling error is far below what the images differ by.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Pixels of an image, about; smaller images give all of theirs. Measured on a denoising Restormer, 20 crops
#: of 128 x 128, ranks 16, 8, 8 and no training: agreement with the teacher is 49.8 dB, with all pixels 49.6;
#: the loss is 0.061 and 0.067 dB.
SAMPLE = 1024


@dataclass(frozen=True)
class Pixels:
    """Places in images of one size.

    Attributes:
        rows, columns: of each of the n pixels, (n,), integers.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, height: int, width: int, seed: int, sample: int = SAMPLE) -> Pixels:
        """About ``sample`` pixels of an image of this size, or all where it has no more.

        Every pixel has the same chance: the cells of the grid have one size, and one that reaches beyond the
        image gives nothing where its place is there.
        """
        side = math.ceil(math.sqrt(height * width / sample))
        y, x = torch.meshgrid(torch.arange(0, height, side), torch.arange(0, width, side), indexing="ij")
        generator = torch.Generator().manual_seed(seed)
        shift = torch.randint(side, (2, *y.shape), generator=generator)
        rows, columns = (y + shift[0]).flatten(), (x + shift[1]).flatten()
        inside = (rows < height) & (columns < width)
        return cls(rows[inside], columns[inside])

    def of_maps(self, maps: Tensor) -> Tensor:
        """Maps (B, C, H, W) at these pixels: (B, C, 1, n)."""
        places = self.rows * maps.shape[-1] + self.columns
        return maps.flatten(2).index_select(2, places.to(maps.device)).unsqueeze(2)
