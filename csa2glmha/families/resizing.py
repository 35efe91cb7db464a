"""Bilinear resizing that several families have, by the formulas of ``torch.nn.functional.interpolate``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.reading.placed import Extent, Place, PlacedModule


class ResizeLike(PlacedModule):
    """Maps of any size (B, C, h, w), not made of the image, to the size of others: (B, C, H, W)."""

    def forward(self, maps: Tensor, like: Tensor) -> Tensor:
        return F.interpolate(maps, like.shape[-2:], mode="bilinear", align_corners=False)

    def forward_at(self, place: Place, maps: Tensor, like: Tensor) -> Tensor:
        """The part of the resized maps that belongs to ``like``, which is of a part of the image."""
        for axis, part in ((2, place.rows), (3, place.columns)):
            target, size = part.of_maps(like.shape[axis]), maps.shape[axis]
            # A pixel's middle lies half a pixel from its border.
            maps = _sampled(maps, axis, (_indices(target) + 0.5) * (size / target.whole) - 0.5)
        return maps


class Rescale(PlacedModule):
    """Maps (B, C, H, W) of the image to (B, C, H * factor, W * factor), corners staying at corners.

    Where the pixels in between come from depends on the image's size.

    Args:
        factor: whole, or one divided by a whole number that divides H and W.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, maps: Tensor) -> Tensor:
        return F.interpolate(maps, scale_factor=self.factor, mode="bilinear", align_corners=True)

    def forward_at(self, place: Place, maps: Tensor) -> Tensor:
        """Of a part of the image. Pixels at its border may lack what lies up to one pixel beyond."""
        for axis, part in ((2, place.rows), (3, place.columns)):
            source = part.of_maps(maps.shape[axis])
            start, length, whole = (
                round(size * self.factor) for size in (source.start, source.length, source.whole)
            )
            indices = _indices(Extent(start, length, whole))
            step = (source.whole - 1) / max(1, whole - 1)
            maps = _sampled(maps, axis, indices * step - source.start)
        return maps


def _indices(part: Extent) -> Tensor:
    # In single precision, as PyTorch: networks with many norms magnify the difference.
    return torch.arange(part.start, part.start + part.length, dtype=torch.float32)


def _sampled(maps: Tensor, axis: int, positions: Tensor) -> Tensor:
    """Maps (B, C, H, W) at positions along an axis, between two pixels the mean weighted by distance."""
    last = maps.shape[axis] - 1
    positions = positions.clamp(0, last)
    low = positions.long()
    weight = (positions - low).to(maps.device, maps.dtype)
    low = low.to(maps.device)
    lower = maps.index_select(axis, low)
    upper = maps.index_select(axis, (low + 1).clamp_max(last))
    return torch.lerp(lower, upper, weight.view(-1, 1) if axis == 2 else weight)
