"""Batches that a program holds in memory, as data to calibrate on, to train on and to evaluate on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.core.errors import DataError
from csa2glmha.data.batches import Batch, Example, Inputs, shuffled
from csa2glmha.metrics.outputs import IMAGES, Outputs

#: Every so many images one is held out, where no others are given.
HOLD_OUT = 8


def read_samples(batches: Iterable[object], what: str, most: int) -> list[Inputs]:
    """Single samples, each with a batch axis of one, on the CPU.

    Args:
        batches: each a tensor (B, ...), or a tuple or list of the network's inputs. Of several inputs each
            has the batch axis of the first, or one of 1 where all samples share it.
        what: they are for, in messages.
        most: samples to take; later ones are left.

    Raises:
        DataError: there are none, or something else is in it.
    """
    found: list[Inputs] = []
    try:
        listed = iter(batches)
    except TypeError:
        raise DataError(
            f"{what}: a {type(batches).__name__} is no iterable of batches; give a list of tensors (B, ...)"
        ) from None
    for number, given in enumerate(listed):
        found += _samples(given, f"{what}: batch {number}")
        if len(found) >= most:
            return found[:most]
    if not found:
        raise DataError(f"{what}: holds no batches; give at least one")
    return found


def _samples(given: object, where: str) -> list[Inputs]:
    inputs = tuple(given) if isinstance(given, tuple | list) else (given,)
    tensors = [each.detach().cpu() for each in inputs if isinstance(each, Tensor)]
    if not inputs or len(tensors) != len(inputs):
        other = next((type(each).__name__ for each in inputs if not isinstance(each, Tensor)), "nothing")
        raise DataError(f"{where}: holds {other}; give a tensor, or a tuple of the network's inputs")
    if any(each.ndim == 0 for each in tensors):
        raise DataError(f"{where}: holds a tensor without a batch axis; give (B, ...)")
    count = len(tensors[0])
    for each in tensors:
        if len(each) not in (1, count):
            raise DataError(
                f"{where}: its inputs have {count} and {len(each)} samples; give as many of each, or 1"
            )
        if each.is_floating_point() and not bool(each.isfinite().all()):
            raise DataError(f"{where}: holds values that are not finite; leave it out")
    return [
        tuple(each if len(each) == 1 else each[index : index + 1] for each in tensors)
        for index in range(count)
    ]


@dataclass(frozen=True)
class GivenBatches:
    """Samples with a batch axis of one; see :class:`csa2glmha.data.batches.Data`.

    They are used whole, at the size that they have.
    """

    train: Sequence[Inputs]
    held_out: Sequence[Inputs]
    notes: tuple[str, ...] = ()
    source: str = "given batches"
    degradation: str | None = None
    outputs: Outputs = IMAGES
    spectral: bool = False
    stretched: bool = False

    @classmethod
    def split(cls, samples: Sequence[Inputs]) -> GivenBatches:
        """Hold out every eighth sample, at least one; of a single one, it serves for both."""
        if len(samples) == 1:
            note = "a single sample was given: figures are of the one that it was calibrated on"
            return cls(samples, samples, (note,))
        step = min(HOLD_OUT, len(samples))
        held_out = [each for index, each in enumerate(samples) if index % step == step - 1]
        return cls([each for index, each in enumerate(samples) if index % step != step - 1], held_out)

    @property
    def training_images(self) -> int:
        """How many samples there are to learn from."""
        return len(self.train)

    @property
    def held_out_images(self) -> int:
        """How many are held out."""
        return len(self.held_out)

    def frame(self, size: int) -> tuple[int, int]:
        """The last two sides of the first held-out input, whatever is asked for."""
        shape = self.held_out[0][0].shape
        return (shape[-2], shape[-1]) if len(shape) > 2 else (1, shape[-1])

    def evaluation_size(self, size: int) -> int:
        """As asked for; samples are used whole."""
        return size

    def calibration(self, size: int, count: int, seed: int, held_out: bool = False) -> list[Inputs]:
        """At most ``count`` samples, spread evenly, one a batch."""
        samples = self.held_out if held_out else self.train
        count = min(count, len(samples))
        return [samples[index * len(samples) // count] for index in range(count)]

    def training(self, size: int | None, seed: int) -> GivenTraining:
        """The samples again and again, in a new order every time."""
        return GivenTraining(self.train, seed)

    def examples(self, size: int, seed: int) -> list[Example]:
        """The held-out samples."""
        return [Example(f"sample {index}", inputs, None) for index, inputs in enumerate(self.held_out)]


@dataclass(frozen=True)
class GivenTraining:
    """Training batches of samples; those of one batch have one shape."""

    samples: Sequence[Inputs]
    seed: int

    def batch(self, step: int, first: int, count: int) -> Batch:
        """As :meth:`csa2glmha.data.batches.TrainingBatches.batch`; ``step`` decides about the shape."""
        like = _shapes(self.samples[shuffled(step, len(self.samples), self.seed)])
        alike = [each for each in self.samples if _shapes(each) == like]
        chosen = [
            alike[shuffled(number, len(alike), self.seed + 1)] for number in range(first, first + count)
        ]
        return Batch(tuple(torch.cat(each) for each in zip(*chosen, strict=True)), None)


def _shapes(inputs: Inputs) -> list[torch.Size]:
    return [each.shape for each in inputs]
