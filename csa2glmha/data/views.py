"""Dual-pixel images: two views of each, in two folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csa2glmha.core.errors import DataError
from csa2glmha.data.crops import ImageSource
from csa2glmha.data.image_set import ImageSet
from csa2glmha.data.subset import Subset
from csa2glmha.metrics.quality import SSIM_WINDOW

#: Two colour images, one after the other.
DUAL_PIXEL_CHANNELS = 6
#: Names of the folders that hold the two views of dual-pixel images.
VIEW_FOLDERS = (("inputL", "inputR"), ("left", "right"), ("l", "r"), ("l_view", "r_view"))


@dataclass(frozen=True)
class DualViews:
    """Left and right view of dual-pixel images, stacked into one input of 6 channels.

    Attributes:
        left: images whose "target" is the right view, or no target: then both views are the same.
        targets: name to index in ``ground_truth``.
    """

    left: ImageSource
    ground_truth: dict[str, tuple[ImageSource, int]]

    def __len__(self) -> int:
        return len(self.left)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Name, input (6, H, W), target (3, H, W) or None."""
        name, left, right = self.left.read(index)
        target = None
        if name in self.ground_truth:
            source, position = self.ground_truth[name]
            target = source.read(position)[2]
        return name, torch.cat((left, left if right is None else right)), target


def open_views(folder: Path, targets: Path | None, pair: str | None) -> tuple[ImageSource, tuple[str, ...]]:
    """The pairs of views in a folder, and notes on what was skipped.

    Raises:
        DataError: they are not there, or cannot be used.
    """
    for left_name, right_name in VIEW_FOLDERS:
        left, right = folder / left_name, folder / right_name
        if left.is_dir() and right.is_dir():
            views = ImageSet.find(left, 3, right, smallest=SSIM_WINDOW)
            notes = views.notes(left)
            if targets is not None:
                pairs = ImageSet.find(left, 3, targets, pair=pair, smallest=SSIM_WINDOW)
                ground_truth: dict[str, tuple[ImageSource, int]] = {
                    name: (pairs, index) for index, name in enumerate(pairs.names)
                }
                known = tuple(index for index, name in enumerate(views.names) if name in ground_truth)
                return DualViews(Subset(views, known), ground_truth), notes + pairs.notes(left)
            return DualViews(views, {}), notes
    expected = ", ".join(f"{left}/ and {right}/" for left, right in VIEW_FOLDERS)
    raise DataError(
        f"{folder}: a dual-pixel model needs two views of each image; expected folders {expected}"
    )
