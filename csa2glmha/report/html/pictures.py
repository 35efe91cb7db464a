"""Pictures as data: URIs, so that a page needs no other file."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

#: All pictures of a page together take no more than this, in bytes before base64, if quality allows.
BUDGET = 3_000_000
#: What WebP is asked for, in turn until the budget is kept. Above 100 nothing is lost.
LOSSLESS = 101
_QUALITIES = (LOSSLESS, 92, 80, 60)


def encode_pictures(images: Sequence[Tensor], budget: int = BUDGET) -> tuple[list[str], int]:
    """Encode pictures alike, as well as the budget allows.

    Args:
        images: (C, H, W) in [0, 1], C = 1 or 3.
        budget: bytes of all together.

    Returns:
        data: URIs of WebP pictures, and the quality, :data:`LOSSLESS` if nothing was lost.
    """
    pixels = [_pixels(image) for image in images]
    for quality in _QUALITIES:
        files = [_webp(each, quality) for each in pixels]
        if sum(map(len, files)) <= budget:
            break
    return ["data:image/webp;base64," + base64.b64encode(file).decode() for file in files], quality


def _pixels(image: Tensor) -> np.ndarray:
    """(H, W, 3), uint8, blue first."""
    rgb = image.clamp(0, 1).mul(255).round().byte().expand(3, -1, -1).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(rgb[:, :, ::-1])


def _webp(pixels: np.ndarray, quality: int) -> bytes:
    _, file = cv2.imencode(".webp", pixels, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return file.tobytes()
