"""From the folders a user names to images for training and images held out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csa2glmha.data.crops import ImageSource
from csa2glmha.data.degrade import Degradation, parse_degradation
from csa2glmha.data.images import ImageSet, MemoryImages, bundled_images
from csa2glmha.errors import DataError

#: Names of the folders that hold the two views of dual-pixel images.
VIEW_FOLDERS = (("inputL", "inputR"), ("left", "right"), ("l", "r"), ("l_view", "r_view"))
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


@dataclass(frozen=True)
class DualViews:
    """Left and right view of dual-pixel images, stacked into one input of 6 channels.

    Attributes:
        left: images whose "target" is the right view, or no target: then both views are the same.
        targets: name to index in ``truth``.
    """

    left: ImageSource
    truth: dict[str, tuple[ImageSource, int]]

    def __len__(self) -> int:
        return len(self.left)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Name, input (6, H, W), target (3, H, W) or None."""
        name, left, right = self.left.read(index)
        target = None
        if name in self.truth:
            source, position = self.truth[name]
            target = source.read(position)[2]
        return name, torch.cat((left, left if right is None else right)), target


@dataclass(frozen=True)
class Data:
    """The images of one job.

    Attributes:
        train, held_out: disjoint sets of images.
        degradation: makes inputs of clean images; None where the images are inputs already.
        source: where they come from, for the report.
        notes: things the user should know.
        has_truth: a reference exists for the outputs.
    """

    train: ImageSource
    held_out: ImageSource
    degradation: Degradation | None
    source: str
    notes: tuple[str, ...]
    has_truth: bool


def open_images(
    folder: Path, channels: int, targets: Path | None = None
) -> tuple[ImageSource, tuple[str, ...]]:
    """All images of a folder, and notes on what was skipped.

    Raises:
        DataError: nothing usable, or dual-pixel views that are not there.
    """
    if channels == 6:
        return _open_views(folder, targets)
    images = ImageSet.find(folder, channels, targets)
    return images, _skipped_note(folder, images)


def prepare_data(
    folder: Path | None, targets: Path | None, degrade: str | None, channels: int, seed: int
) -> Data:
    """Open the images, split off the held-out ones.

    Args:
        folder: None takes the photographs that come with scikit-image.
        targets: ground truth of the images in ``folder``.
        degrade: as :func:`parse_degradation` reads it; None: the images are degraded already.
        channels: of the model's input.
        seed: decides the split.

    Raises:
        DataError, UsageError: no usable images, fewer than two, or a bad degradation.
    """
    degradation = None if degrade is None else parse_degradation(degrade)
    notes: tuple[str, ...] = ()
    if folder is None:
        names_and_images = bundled_images(3 if channels == 6 else channels)
        images: ImageSource = MemoryImages(names_and_images)
        if channels == 6:
            images = DualViews(images, {})
        source = "photographs bundled with scikit-image: " + ", ".join(name for name, _ in names_and_images)
        how = f"degraded by {degrade}" if degrade else "not degraded"
        notes = (
            f"no --data: calibrating on {len(images)} photographs bundled with scikit-image, {how}; "
            "images of the model's own task give a better student",
        )
        if degrade is None:
            degradation = parse_degradation("none")
            notes += ("no --degrade: if the model removes noise or blur, say which, e.g. --degrade noise:25",)
    else:
        images, notes = open_images(folder, channels, targets)
        source = str(folder)
    if len(images) < 2:
        raise DataError(
            f"{source}: only {len(images)} usable image; give at least 2, since some are held out for judging"
        )
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, min(MAX_HELD_OUT, len(images) // 8))
    return Data(
        train=Subset(images, tuple(order[count:])),
        held_out=Subset(images, tuple(order[:count])),
        degradation=degradation,
        source=source,
        notes=notes,
        has_truth=targets is not None or degradation is not None,
    )


def _open_views(folder: Path, targets: Path | None) -> tuple[ImageSource, tuple[str, ...]]:
    for left_name, right_name in VIEW_FOLDERS:
        left, right = folder / left_name, folder / right_name
        if left.is_dir() and right.is_dir():
            views = ImageSet.find(left, 3, right)
            notes = _skipped_note(left, views)
            if targets is not None:
                pairs = ImageSet.find(left, 3, targets)
                truth: dict[str, tuple[ImageSource, int]] = {
                    pairs.read(i)[0]: (pairs, i) for i in range(len(pairs))
                }
                known = tuple(i for i in range(len(views)) if views.read(i)[0] in truth)
                return DualViews(Subset(views, known), truth), notes + _skipped_note(left, pairs)
            return DualViews(views, {}), notes
    expected = ", ".join(f"{left}/ and {right}/" for left, right in VIEW_FOLDERS)
    raise DataError(
        f"{folder}: a dual-pixel model needs two views of each image; expected folders {expected}"
    )


def _skipped_note(folder: Path, images: ImageSet) -> tuple[str, ...]:
    if not images.skipped:
        return ()
    first = ", ".join(f"{path.name} ({reason})" for path, reason in images.skipped[:3])
    more = ", ..." if len(images.skipped) > 3 else ""
    return (f"{folder}: {images.describe_skipped()}: {first}{more}",)
