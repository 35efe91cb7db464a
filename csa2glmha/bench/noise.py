"""What models are timed on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def noise(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """Inputs of these shapes on the CPU, in [0, 1], the same every time."""
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator) for shape in shapes]
