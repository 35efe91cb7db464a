"""Some images of a source: those to train on, and those that are held out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.core.errors import DataError
from csa2glmha.data.crops import ImageSource

#: At most this many images are held out of training.
MAX_HELD_OUT = 8


@dataclass(frozen=True)
class Subset:
    """Some images of a source, in a given order."""

    source: ImageSource
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """As the source's."""
        return self.source.read(self.indices[index])


def split(images: ImageSource, source: str, seed: int, most: int = MAX_HELD_OUT) -> tuple[Subset, Subset]:
    """Training and held-out images, an eighth of all but ``most``; ``source`` names them in the message.

    Raises:
        DataError: fewer than two.
    """
    if len(images) < 2:
        raise DataError(
            f"{source}: only {len(images)} usable image; give at least 2, since some are held out to "
            "evaluate on"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, min(most, len(images) // 8))
    return Subset(images, tuple(order[count:])), Subset(images, tuple(order[:count]))
