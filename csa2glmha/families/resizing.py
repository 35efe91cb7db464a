"""Bilinear resizing that several families have, by the formulas of ``torch.nn.functional.interpolate``."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.reading.placed import Part, Place, PlacedModule


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


def _indices(part: Part) -> Tensor:
    return torch.arange(part.start, part.start + part.length, dtype=torch.float64)


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
