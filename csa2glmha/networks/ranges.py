"""The values that networks take, from images in [0, 1] and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Range:
    """Values that black and white have, of all channels alike or of each.

    Attributes:
        low: of black.
        span: from black to white.
    """

    low: tuple[float, ...]
    span: tuple[float, ...]

    @property
    def channels(self) -> int | None:
        """Of images that have these values; None: any."""
        return len(self.low) if len(self.low) > 1 else None

    def enter(self, image: Tensor) -> Tensor:
        """An image in [0, 1], (B, C, H, W), in this range; what is no such image stays as it is."""
        if self == UNIT or not self._fits(image):
            return image
        return image * _values(self.span, image) + _values(self.low, image)

    def leave(self, image: Tensor) -> Tensor:
        """The inverse."""
        if self == UNIT or not self._fits(image):
            return image
        return (image - _values(self.low, image)) / _values(self.span, image)

    def _fits(self, image: Tensor) -> bool:
        return image.ndim == 4 and self.channels in (None, image.shape[1])


def _values(values: tuple[float, ...], like: Tensor) -> Tensor | float:
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, dtype=like.dtype, device=like.device).view(1, -1, 1, 1)


UNIT = Range((0.0,), (1.0,))
#: Mean and standard deviation of ImageNet's training images, by which classifiers are usually fed.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RANGES = {
    "0-1": UNIT,
    "-1-1": Range((-1.0,), (2.0,)),
    "0-255": Range((0.0,), (255.0,)),
    "imagenet": Range(
        tuple(-mean / deviation for mean, deviation in zip(_MEAN, _DEVIATION, strict=True)),
        tuple(1 / deviation for deviation in _DEVIATION),
    ),
}
