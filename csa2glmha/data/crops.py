"""Crops of images for calibration and training.

There are three kinds of data, told apart by ``degradation`` and by the images themselves:

* clean images and a degradation: the input is synthesised, the clean image is its reference;
* pairs (images that come with a target) and no degradation: the target is the reference;
* degraded images alone and no degradation: there is no reference (``None``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.batches import Batch, seeded, shuffled
from csa2glmha.data.degrade import Degradation, cut_to_multiple, reflect_pad


class ImageSource(Protocol):
    """Indexed images of one channel count; :class:`~csa2glmha.data.images.ImageSet` is one."""

    def __len__(self) -> int:
        """Return the number of images, all of them readable."""
        ...

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return name, input (C, H, W) float32, and target or None; targets may be larger."""
        ...


def random_crop(
    image: Tensor, target: Tensor | None, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Cut the same random ``size`` x ``size`` window from an image (C, H, W) and its target, if any.

    Of a target that is some times larger, the window is as much larger. A side shorter than ``size`` is first
    reflect-padded up to it, at the bottom or right.
    """
    times = 1 if target is None else max(target.shape[-1] // image.shape[-1], 1)
    image = _pad_to(image, size)
    top, left = _random_corner(image, size, generator)
    crop = image[..., top : top + size, left : left + size]
    if target is None:
        return crop, None
    return crop, _window(_pad_to(target, times * size), times * top, times * left, times * size)


def augment(image: Tensor, target: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
    """Apply one of the eight flips and 90-degree rotations, drawn uniformly, to both (..., H, W)."""
    choice = int(torch.randint(8, (), generator=generator))
    return _turn(image, choice), None if target is None else _turn(target, choice)


def calibration_crops(
    images: ImageSource, degradation: Degradation | None, size: int, count: int, seed: int
) -> tuple[Tensor, Tensor | None]:
    """Cut ``count`` crops, spread evenly over the images.

    The images are visited in turn, in an order drawn from ``seed``, so no image gives more than one crop
    more than another. The same arguments give the same crops.

    Returns:
        Inputs (count, C, size, size) and their references, so many times larger where a network enlarges;
        None where there are none (see the module's three kinds of data).

    Raises:
        UsageError: a size or count below one, or a degradation for images that come with targets.
        DataError: there is no image, or one cannot be read.
    """
    _check(images, size, count)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(images), generator=generator).tolist()
    return _stack(
        [_sample(images, order[j % len(order)], degradation, size, generator) for j in range(count)]
    )


@dataclass(frozen=True)
class TrainingCrops:
    """Training batches of crops, augmented by flips and rotations.

    Every image is used once per pass, in an order shuffled anew for each pass.

    Attributes:
        images, degradation: see the module's three kinds of data.
        size: side of the crops.
        seed: of everything random.
        clean_is_ground_truth: the network's output for a degraded image should be the clean one. (It
            should not where a network turns colours into spectra.)

    Raises:
        UsageError: a size below one, or a degradation for images that come with targets.
        DataError: there is no image, or one cannot be read.
    """

    images: ImageSource
    degradation: Degradation | None
    size: int
    seed: int
    clean_is_ground_truth: bool = True

    def __post_init__(self) -> None:
        _check(self.images, self.size, 1)

    def batch(self, step: int, first: int, count: int) -> Batch:
        """As :meth:`csa2glmha.data.batches.TrainingBatches.batch`; samples share nothing."""
        inputs, ground_truth = _stack([self.sample(number) for number in range(first, first + count)])
        known = ground_truth is not None and (self.degradation is None or self.clean_is_ground_truth)
        return Batch((inputs,), ground_truth if known else None)

    def sample(self, number: int) -> tuple[Tensor, Tensor | None]:
        """Input (C, size, size) and reference, or None."""
        generator = seeded("crop", self.seed, number)
        index = shuffled(number, len(self.images), self.seed)
        image, reference = _sample(self.images, index, self.degradation, self.size, generator)
        return augment(image, reference, generator)


def _check(images: ImageSource, size: int, count: int) -> None:
    if len(images) == 0:
        raise DataError(
            "there is no image to take crops from; give a folder with at least one readable image"
        )
    if size < 1 or count < 1:
        raise UsageError(
            f"cannot take {count} crops of {size} x {size} pixels; both numbers must be at least 1"
        )


def _sample(
    images: ImageSource, index: int, degradation: Degradation | None, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    name, image, target = images.read(index)
    if degradation is None:
        return random_crop(image, target, size, generator)
    if target is not None:
        raise UsageError(
            f"degradation {degradation.spec!r} cannot be applied: image {name!r} comes with a target; "
            "leave out either the degradation or the targets"
        )
    return _degraded_crop(image, degradation, size, generator)


def _degraded_crop(
    clean: Tensor, degradation: Degradation, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    times, reach = degradation.times, degradation.reach
    clean = cut_to_multiple(_pad_to(clean, times * size), times)
    # In pixels of the degraded image: that of the crop must be that of the whole image, reduced.
    corner = _random_corner(clean[..., ::times, ::times], size, generator)
    top, left = (times * each for each in corner)
    # Blur carries pixels across the edge of the crop: degrade what it can reach as well, then cut that off.
    up, before = min(top, reach), min(left, reach)
    bottom, right = top + times * size + reach, left + times * size + reach
    degraded = degradation(clean[..., top - up : bottom, left - before : right], generator)
    return _window(degraded, up // times, before // times, size), _window(clean, top, left, times * size)


def _window(image: Tensor, top: int, left: int, size: int) -> Tensor:
    return image[..., top : top + size, left : left + size]


def _pad_to(image: Tensor, size: int) -> Tensor:
    height, width = image.shape[-2:]
    if height >= size and width >= size:
        return image
    return reflect_pad(image, 0, max(0, size - width), 0, max(0, size - height))


def _random_corner(image: Tensor, size: int, generator: torch.Generator) -> tuple[int, int]:
    height, width = image.shape[-2:]
    top = int(torch.randint(height - size + 1, (), generator=generator))
    left = int(torch.randint(width - size + 1, (), generator=generator))
    return top, left


def _turn(image: Tensor, choice: int) -> Tensor:
    if choice >= 4:
        image = image.flip(-1)
    return torch.rot90(image, choice % 4, (-2, -1))


def _stack(pairs: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    references = [reference for _, reference in pairs if reference is not None]
    return torch.stack([image for image, _ in pairs]), torch.stack(references) if references else None
