"""What networks are trained and evaluated on, whatever it is made from.

Training batches are random access: batch and sample are functions of their numbers and a seed alone, with
no state between them. So training can stop anywhere and go on exactly, and any number of processes can
share the work and see what one would have seen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from csa2glmha.metrics.outputs import Outputs

#: The inputs of one call of a network, in the order of its ``input_names``, each with a batch axis.
Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Batch:
    """Inputs and the ground truth of the output, None where it is not known.

    That is (B, C', H, W), or of classes (B, classes), with a one for the true class.
    """

    inputs: Inputs
    ground_truth: Tensor | None


@dataclass(frozen=True)
class Example:
    """One image to evaluate on: inputs with a batch axis of one; the ground truth without it, where known."""

    name: str
    inputs: Inputs
    ground_truth: Tensor | None


class TrainingBatches(Protocol):
    """Endless training data in random access."""

    def batch(self, step: int, first: int, count: int) -> Batch:
        """Samples number ``first`` to ``first + count - 1``.

        What all samples of a step share, such as a part of a mask, depends on ``step``: processes that
        divide a step's samples between them give the same step.
        """
        ...


class Data(Protocol):
    """Everything that a job needs to know of its images; some of them are held out of training.

    Attributes:
        source: where they come from, for the report.
        notes: what the user should know.
        degradation: how inputs are made of clean images, as the user wrote it; None where they are not.
        training_images, held_out_images: how many.
        outputs: what the network makes of them.
        spectral: the outputs' channels are bands of a spectrum.
        stretched: each whole image is brought to [0, 1] first.
    """

    @property
    def source(self) -> str: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    @property
    def degradation(self) -> str | None: ...
    @property
    def training_images(self) -> int: ...
    @property
    def held_out_images(self) -> int: ...
    @property
    def outputs(self) -> Outputs: ...
    @property
    def spectral(self) -> bool: ...
    @property
    def stretched(self) -> bool: ...

    def frame(self, size: int) -> tuple[int, int]:
        """Height and width of the examples where a side of ``size`` is asked for."""
        ...

    def evaluation_size(self, size: int) -> int:
        """Side of the crops that decide which weights are kept, where calibration takes ``size``."""
        ...

    def calibration(self, size: int, count: int, seed: int, held_out: bool = False) -> list[Inputs]:
        """Inputs of ``count`` crops of side ``size`` in batches of two, spread evenly over the images."""
        ...

    def training(self, size: int | None, seed: int) -> TrainingBatches:
        """Crops of side ``size`` of the training images; None: of the side that serves this kind of data."""
        ...

    def examples(self, size: int, seed: int) -> list[Example]:
        """The held-out images, cut to :meth:`frame`."""
        ...


def seeded(*parts: int | str) -> torch.Generator:
    """A random generator that is a function of all of the parts.

    PyTorch's takes 32 bits of its seed, so numbers cannot be combined by adding multiples.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))


def shuffled(number: int, count: int, seed: int) -> int:
    """Which of ``count`` images sample ``number`` is from: each once a pass, in a new order every pass."""
    turn, position = divmod(number, count)
    return _order(turn, count, seed)[position]


@lru_cache(maxsize=8)
def _order(turn: int, count: int, seed: int) -> list[int]:
    order: list[int] = torch.randperm(count, generator=seeded("order", seed, turn)).tolist()
    return order
