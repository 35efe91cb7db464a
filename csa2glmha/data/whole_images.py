"""Whole images at the one size that a classifier sees them in: resized, and cut centrally or at random."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.data.batches import Batch, Example, Inputs, seeded, shuffled
from csa2glmha.data.crops import ImageSource
from csa2glmha.data.degrade import Degradation
from csa2glmha.data.labels import Labels
from csa2glmha.metrics.outputs import LOGITS, Outputs

Size = tuple[int, int]
#: Of the shorter side of an image, what is seen of it from the centre: 224 of 256 pixels, as is usual.
CENTRAL_SHARE = 0.875
#: Of a training image so much of the area is seen at least, in a window of these proportions at most.
LEAST_AREA, PROPORTIONS = 0.35, (3 / 4, 4 / 3)


def centred(image: Tensor, size: Size) -> Tensor:
    """The middle of an image (C, H, W), resized by bicubic interpolation to a height and width."""
    height, width = image.shape[-2:]
    scale = max(size[0] / height, size[1] / width) / CENTRAL_SHARE
    image = resized(image, (max(round(height * scale), size[0]), max(round(width * scale), size[1])))
    top, left = ((side - wanted) // 2 for side, wanted in zip(image.shape[-2:], size, strict=True))
    return image[..., top : top + size[0], left : left + size[1]]


def random_view(image: Tensor, size: Size, generator: torch.Generator) -> Tensor:
    """A random part of an image (C, H, W), resized to a height and width, mirrored half of the time."""
    height, width = image.shape[-2:]
    area, proportion, down, across, mirrored = torch.rand(5, generator=generator).tolist()
    area = height * width * (LEAST_AREA + (1 - LEAST_AREA) * area)
    low, high = (math.log(each * size[1] / size[0]) for each in PROPORTIONS)
    wide = math.exp((low + (high - low) * proportion) / 2)
    rows = max(min(round(math.sqrt(area) / wide), height), 1)
    columns = max(min(round(math.sqrt(area) * wide), width), 1)
    top, left = round((height - rows) * down), round((width - columns) * across)
    view = resized(image[..., top : top + rows, left : left + columns], size)
    return view.flip(-1) if mirrored < 0.5 else view


def resized(image: Tensor, size: Size) -> Tensor:
    """An image (C, H, W) in [0, 1] at another size, smoothed where it gets smaller."""
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


@dataclass(frozen=True)
class Views:
    """Images as a classifier is given them.

    Attributes:
        images: of any size.
        size: height and width that it takes.
        labels: true classes; None: they are not known.
        degrade: what is done to the images at that size; None: nothing.
    """

    images: ImageSource
    size: Size
    labels: Labels | None = None
    degrade: Degradation | None = None

    def centre(self, index: int, seed: int) -> Example:
        """The middle of one image."""
        name, image, _ = self.images.read(index)
        view = self._degraded(centred(image, self.size), seeded("degrade", seed, index))
        return Example(name, (view[None],), self.truth(name))

    def random(self, index: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """A random part (C, H, W) of one image, and its true class."""
        name, image, _ = self.images.read(index)
        view = random_view(image, self.size, generator)
        return self._degraded(view, generator), self.truth(name)

    def truth(self, name: str) -> Tensor | None:
        """The true class of an image, (classes,), one-hot."""
        return None if self.labels is None else self.labels.one_hot(name)

    def _degraded(self, image: Tensor, generator: torch.Generator) -> Tensor:
        return image if self.degrade is None else self.degrade(image, generator)


@dataclass(frozen=True)
class ClassTraining:
    """Training batches of random parts of images; see :class:`csa2glmha.data.batches.TrainingBatches`."""

    views: Views
    seed: int

    def batch(self, step: int, first: int, count: int) -> Batch:
        """Every image is used once per pass, in an order shuffled anew each time; samples share nothing."""
        views, seed = self.views, self.seed
        seen = [
            views.random(shuffled(number, len(views.images), seed), seeded("view", seed, number))
            for number in range(first, first + count)
        ]
        truths = [truth for _, truth in seen if truth is not None]
        return Batch((torch.stack([view for view, _ in seen]),), torch.stack(truths) if truths else None)


@dataclass(frozen=True)
class ClassData:
    """Images to convert and train a classifier on; see :class:`csa2glmha.data.batches.Data`.

    They are seen whole at one size, whatever size is asked for.

    Attributes:
        train, held_out: disjoint.
        source, notes: as in :class:`csa2glmha.data.batches.Data`.
    """

    train: Views
    held_out: Views
    source: str
    notes: tuple[str, ...]
    outputs: Outputs = LOGITS
    spectral: bool = False
    stretched: bool = False

    @property
    def degradation(self) -> str | None:
        """In the user's words; None: images are inputs as they are."""
        return None if self.train.degrade is None else self.train.degrade.spec

    @property
    def training_images(self) -> int:
        return len(self.train.images)

    @property
    def held_out_images(self) -> int:
        return len(self.held_out.images)

    def frame(self, size: int) -> tuple[int, int]:
        """Of all images."""
        return self.train.size

    def evaluation_size(self, size: int) -> int:
        """As asked for; images have their one size."""
        return size

    def calibration(self, size: int, count: int, seed: int, held_out: bool = False) -> list[Inputs]:
        """Random parts of the images to learn from; of the others the middle, as many as there are."""
        if held_out:
            count = min(count, self.held_out_images)
            return [self.held_out.centre(index, seed).inputs for index in range(count)]
        generator = seeded("calibration", seed)
        order = torch.randperm(self.training_images, generator=generator).tolist()
        seen = [self.train.random(order[number % len(order)], generator)[0] for number in range(count)]
        return [(pair,) for pair in torch.stack(seen).split(2)]

    def training(self, size: int | None, seed: int) -> ClassTraining:
        """As :meth:`csa2glmha.data.batches.Data.training`."""
        return ClassTraining(self.train, seed)

    def examples(self, size: int, seed: int) -> list[Example]:
        """The middle of every held-out image."""
        return [self.held_out.centre(index, seed) for index in range(self.held_out_images)]
