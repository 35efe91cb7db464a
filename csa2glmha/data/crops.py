"""Crops of images for calibration and training.

There are three kinds of data, told apart by ``degradation`` and by the images themselves:

* clean images and a degradation: the input is synthesised, the clean image is its reference;
* pairs (images that come with a target) and no degradation: the target is the reference;
* degraded images alone and no degradation: there is no reference (``None``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from csa2glmha.data.degrade import Degradation, reflect_pad
from csa2glmha.errors import DataError, UsageError


class ImageSource(Protocol):
    """Indexed images of one channel count; :class:`~csa2glmha.data.images.ImageSet` is one."""

    def __len__(self) -> int:
        """Return the number of images, all of them readable."""
        ...

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return name, input (C, H, W) float32, and target of the same height and width or None."""
        ...


def random_crop(
    image: Tensor, target: Tensor | None, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Cut the same random ``size`` x ``size`` window from an image (C, H, W) and its target, if any.

    A side shorter than ``size`` is first reflect-padded up to it, at the bottom or right.
    """
    image = _pad_to(image, size)
    top, left = _random_corner(image, size, generator)
    crop = image[..., top : top + size, left : left + size]
    if target is None:
        return crop, None
    return crop, _pad_to(target, size)[..., top : top + size, left : left + size]


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
        Inputs (count, C, size, size) and their references of the same shape, None where there are none
        (see the module's three kinds of data).

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


class CropStream(Iterator[tuple[Tensor, Tensor | None]]):
    """Endless training batches: inputs (B, C, size, size) and references of the same shape, or None.

    Every image is used once per pass, in an order shuffled anew for each pass; crops are augmented by
    flips and rotations. All randomness comes from one seeded generator, so that :meth:`state_dict`
    allows an exact continuation with the same images and arguments.

    Raises:
        UsageError: a size or batch below one, or a degradation for images that come with targets.
        DataError: there is no image, or one cannot be read.
    """

    def __init__(
        self, images: ImageSource, degradation: Degradation | None, size: int, batch: int, seed: int
    ) -> None:
        _check(images, size, batch)
        self._images = images
        self._degradation = degradation
        self._size = size
        self._batch = batch
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.randperm(len(images), generator=self._generator)
        self._position = 0

    def __next__(self) -> tuple[Tensor, Tensor | None]:
        return _stack([self._next_crop() for _ in range(self._batch)])

    def _next_crop(self) -> tuple[Tensor, Tensor | None]:
        if self._position == len(self._order):
            self._order = torch.randperm(len(self._order), generator=self._generator)
            self._position = 0
        index = int(self._order[self._position])
        self._position += 1
        image, reference = _sample(self._images, index, self._degradation, self._size, self._generator)
        return augment(image, reference, self._generator)

    def state_dict(self) -> dict[str, Any]:
        """Return the position: tensors and numbers only, so ``torch.load(weights_only=True)`` reads it."""
        return {
            "generator": self._generator.get_state(),
            "order": self._order.clone(),
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises:
            DataError: the state was taken on another number of images.
        """
        if len(state["order"]) != len(self._images):
            raise DataError(
                f"cannot resume: the run was saved with {len(state['order'])} training images, "
                f"now there are {len(self._images)}; give the same images, or start a new run"
            )
        self._generator.set_state(state["generator"])
        self._order = state["order"].clone()
        self._position = int(state["position"])


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
    clean = _pad_to(clean, size)
    top, left = _random_corner(clean, size, generator)
    # Blur carries pixels across the edge of the crop: degrade what it can reach as well, then cut that off.
    up, before = min(top, degradation.reach), min(left, degradation.reach)
    bottom, right = top + size + degradation.reach, left + size + degradation.reach
    degraded = degradation(clean[..., top - up : bottom, left - before : right], generator)
    return (
        degraded[..., up : up + size, before : before + size],
        clean[..., top : top + size, left : left + size],
    )


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
