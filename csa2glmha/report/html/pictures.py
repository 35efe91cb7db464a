"""Pictures as data: URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from csa2glmha.metrics.comparisons import Comparison

#: All pictures of a page together take no more than this, in bytes before base64, if quality allows.
BUDGET = 3_000_000
#: What pictures are stored as: without loss, or at one of WebP's qualities; in turn until the budget is kept.
LOSSLESS = "lossless"
_QUALITIES = (LOSSLESS, 92, 80, 60)

Quality = int | str


def all_pictures(images: Sequence[Comparison]) -> list[Tensor]:
    """The pictures of a page, in its order."""
    return [panel.image for image in images for view in image.views for panel in view.panels]


def choose_quality(images: Sequence[Tensor], budget: int = BUDGET) -> Quality:
    """The best quality, the same for all, that the budget allows; the lowest if none does.

    Args:
        images: (C, H, W) in [0, 1], C = 1 or 3.
        budget: bytes of all together.
    """
    pixels = [_pixels(image) for image in images]
    for quality in _QUALITIES[:-1]:
        if sum(len(_webp(each, quality)) for each in pixels) <= budget:
            return quality
    return _QUALITIES[-1]


def encode_pictures(images: Sequence[Tensor], quality: Quality) -> list[str]:
    """data: URIs of WebP pictures of a quality of :func:`choose_quality`'s."""
    files = [_webp(_pixels(image), quality) for image in images]
    return ["data:image/webp;base64," + base64.b64encode(file).decode() for file in files]


def _pixels(image: Tensor) -> np.ndarray:
    """(H, W, 3), uint8, blue first."""
    rgb = image.clamp(0, 1).mul(255).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(rgb[:, :, ::-1])


def _webp(pixels: np.ndarray, quality: Quality) -> bytes:
    asked = quality if isinstance(quality, int) else 101  # above 100 OpenCV loses nothing
    _, file = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, asked])
    return file.tobytes()
