"""HVI: a colour space in which what is dark lies close together, whatever its hue.

Written from the description in Yan et al., "HVI: A New Color Space for Low-light Image Enhancement", CVPR
2025 (arXiv 2502.20272). I is the largest of R, G and B, and (H, V) a vector whose angle is the hue and whose
length the saturation, times a power of I that is learned.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

#: Keeps divisions and roots away from zero; published networks were trained with this one.
EPS = 1e-8


class HVITransform(nn.Module):
    """From RGB to HVI and back, (B, 3, H, W) each.

    In float32: half precision does not know :data:`EPS`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.density_k = nn.Parameter(torch.full((1,), 0.2))

    def forward(self, image: Tensor) -> Tensor:
        """HVI of an image; negative values, which noise may have made, count as 0."""
        image = image.float().clamp_min(0)
        parts = image.split([1, 1, 1], 1)
        red, green, blue = parts[0], parts[1], parts[2]  # a trace cannot iterate over them
        value = image.amax(1, keepdim=True)
        chroma = value - image.amin(1, keepdim=True)
        # The hue in sixths of a turn: from red over yellow, green, cyan, blue and magenta to red again.
        span = chroma + EPS
        after_green = torch.where(
            torch.eq(green, value), (blue - red) / span + 2.0, (red - green) / span + 4.0
        )
        hue = torch.where(torch.eq(red, value), (green - blue) / span, after_green)
        length = self._sensitivity(value) * (chroma / (value + EPS))
        angle = hue * (math.pi / 3)
        return torch.cat((length * torch.cos(angle), length * torch.sin(angle), value), 1)

    def inverse(self, hvi: Tensor) -> Tensor:
        """The image (B, 3, H, W) in [0, 1] of any HVI; what is out of range is cut off."""
        parts = hvi.float().split([1, 1, 1], 1)
        value = parts[2].clamp(0, 1)
        sensitivity = self._sensitivity(value) + EPS
        across, up = ((part.clamp(-1, 1) / sensitivity).clamp(-1, 1) for part in (parts[0], parts[1]))
        saturation = torch.sqrt(across * across + up * up + EPS).clamp(0, 1)
        hue = torch.atan2(up + EPS, across + EPS) * (3 / math.pi)
        # How far a hue is from that of red, green and blue says how much of each there is.
        red = (2.0 - hue.abs()).clamp(0, 1)
        green, blue = (_share((hue + offset).abs()) for offset in (-2.0, 2.0))
        pure = torch.cat((red, green, blue), 1)
        return value * ((pure - 1.0) * saturation + 1.0)

    def _sensitivity(self, value: Tensor) -> Tensor:
        return (torch.sin(value * (math.pi / 2)) + EPS) ** self.density_k


def _share(distance: Tensor) -> Tensor:
    """From a distance in sixths of a turn, 0 to 5: one up to 1, zero from 2 to 4, one again from 5."""
    return torch.maximum(2.0 - distance, distance - 4.0).clamp(0, 1)
