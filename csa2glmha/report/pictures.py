"""Pictures for the report."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

#: How much the difference between student and teacher is amplified to be visible at all.
DIFFERENCE_GAIN = 20
_CAPTION_HEIGHT = 28
_GAP = 6


def comparison(
    input_image: Tensor, teacher: Tensor, student: Tensor, truth: Tensor | None, gain: int = DIFFERENCE_GAIN
) -> Tensor:
    """Input, teacher, student, amplified difference and truth side by side, with captions.

    Args:
        input_image, teacher, student, truth: (C, H, W) in [0, 1], C = 1 or 3 (of 6 the first 3 are shown).
        gain: the difference is shown as 0.5 + gain * (student - teacher).

    Returns:
        (3, H', W').
    """
    panels = [
        ("input", input_image),
        ("teacher", teacher),
        ("student", student),
        (f"difference x{gain}", 0.5 + gain * (student - teacher)),
    ]
    if truth is not None:
        panels.append(("truth", truth))
    columns: list[Tensor] = []
    for index, (caption, image) in enumerate(panels):
        if index:
            columns.append(torch.ones(3, columns[0].shape[1], _GAP))
        columns.append(_captioned(_colour(image), caption))
    return torch.cat(columns, 2)


def _colour(image: Tensor) -> Tensor:
    image = image.clamp(0, 1)
    return image[:3] if image.shape[0] >= 3 else image[:1].expand(3, -1, -1)


def _captioned(image: Tensor, caption: str) -> Tensor:
    strip = np.full((_CAPTION_HEIGHT, image.shape[2], 3), 255, np.uint8)
    cv2.putText(strip, caption, (4, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (30, 30, 30), 1, cv2.LINE_AA)
    caption_strip = torch.from_numpy(strip).permute(2, 0, 1).float() / 255
    return torch.cat((caption_strip, image), 1)
