"""Inputs that a network takes beside its image: one value, one file, or a file for each image of a folder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.batches import Batch, Data, Example, Inputs, TrainingBatches
from csa2glmha.data.crops import ImageSource
from csa2glmha.data.degrade import Degradation
from csa2glmha.data.folders import list_files, stem
from csa2glmha.data.inputs.given_files import SUFFIXES, WANTED, Shape, read_given
from csa2glmha.data.sources import ImageData
from csa2glmha.networks.foreign import is_map


@dataclass(frozen=True)
class FurtherInput:
    """One input beside the image.

    Attributes:
        name: as the network calls it.
        shape: of an example of it.
        image: shape of the image of that example.
        value: for each of its numbers, where it is the same for every image.
        files: by the names of images without suffix, "" for all of them.
        key: the name of the array in files of several.
    """

    name: str
    shape: Shape
    image: Shape
    value: float | None = None
    files: Mapping[str, Path] | None = None
    key: str | None = None

    @property
    def shrinks(self) -> int | None:
        """How many times smaller than the image it is; None: it is no map."""
        if not is_map(self.shape):
            return None
        times = {before // after for before, after in zip(self.image[2:], self.shape[2:], strict=True)}
        fits = all(
            before == after * (before // after)
            for before, after in zip(self.image[2:], self.shape[2:], strict=True)
        )
        return times.pop() if fits and len(times) == 1 else None

    def for_image(self, name: str, height: int, width: int) -> Tensor:
        """(C, h, w), or of its own shape without a batch axis.

        Args:
            name: of the image: a path of which the last parts are looked for.
            height, width: of the image that the network takes.

        Raises:
            DataError: there is no such file, or it does not fit.
        """
        shape = self.shape[1:]
        if self.shrinks is not None:
            shape = (shape[0], height // self.shrinks, width // self.shrinks)
        if self.value is not None:
            return torch.full(shape, self.value)
        return read_given(self._file(name), self.key, shape, f"{self.name} for {name}")

    def _file(self, name: str) -> Path:
        assert self.files is not None
        parts = PurePosixPath(stem(name)).parts
        for first in range(len(parts)):
            found = self.files.get("/".join(parts[first:]))
            if found is not None:
                return found
        if "" in self.files:
            return self.files[""]
        raise DataError(
            f"--input {self.name}: there is no file for {name}; give {WANTED} of the same name for each image"
        )


def further_inputs(
    network: str, names: Sequence[str], shapes: Sequence[Shape], given: Mapping[str, str]
) -> tuple[FurtherInput, ...]:
    """What the user gave for the inputs of a network but the first.

    Args:
        network: what it is called.
        names, shapes: of all inputs.
        given: by name, a number, a file or a folder.

    Raises:
        UsageError: one is missing, or there is none of that name.
        DataError: a folder that cannot be used.
    """
    wanted = list(names[1:])
    for name in given:
        if name not in wanted:
            known = f"it takes {', '.join(wanted)}" if wanted else "it takes an image alone"
            raise UsageError(f"--input {name}: {network} has no such input beside the image; {known}")
    found = []
    for name, shape in zip(wanted, shapes[1:], strict=True):
        if name not in given:
            raise UsageError(
                f"{network} takes {name} beside the image: give --input {name}=FOLDER with {WANTED} for "
                "each image, or one file or number for all"
            )
        plain = FurtherInput(name, tuple(shape), tuple(shapes[0]))
        if is_map(plain.shape) and plain.shrinks is None:
            raise UsageError(
                f"--input {name}: {'x'.join(map(str, shape))} is no whole part of the image's size"
            )
        found.append(_opened(plain, given[name]))
    return tuple(found)


def _opened(plain: FurtherInput, given: str) -> FurtherInput:
    with contextlib.suppress(ValueError):
        value = float(given)
        if not math.isfinite(value):
            raise UsageError(f"--input {plain.name}={given}: give a finite number")
        return replace(plain, value=value)
    path, key = _keyed(given)
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise DataError(
                f"--input {plain.name}: {str(path)!r} is of no format that is read; give {WANTED}"
            )
        return replace(plain, files={"": path}, key=key)
    listed = list_files(path, SUFFIXES, f"--input {plain.name}", f"{WANTED} for each image")
    return replace(plain, files={stem(name): each for name, each in listed}, key=key)


def _keyed(given: str) -> tuple[Path, str | None]:
    """A file or folder, and the name of an array in it, as in "depth.mat:near"."""
    where, colon, key = given.rpartition(":")
    if colon and where and not Path(given).exists() and Path(where).exists():
        return Path(where), key
    return Path(given), None


@dataclass(frozen=True)
class _Joined:
    """Images with the maps that go with them as further channels, and a last one with their number.

    So crops, flips and rotations are those of the image. It has to be told apart from two views: a seventh
    channel is added to six.
    """

    images: ImageSource
    further: tuple[FurtherInput, ...]
    times: int

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """As :meth:`ImageSource.read`."""
        name, image, target = self.images.read(index)
        height, width = image.shape[-2:]
        sizes = [each // self.times for each in (height, width)]
        parts = [image]
        for each in self.further:
            if each.shrinks is not None:
                small = each.for_image(name, *sizes)[None]
                parts.append(nn.functional.interpolate(small, (height, width), mode="nearest")[0])
        number = torch.full((1, height, width), float(index))
        joined = torch.cat((*parts, number))
        return name, torch.cat((joined, number)) if len(joined) == 6 else joined, target


@dataclass(frozen=True)
class _FirstChannels(Degradation):
    """A degradation of the image alone; what goes with it is brought to the size of the result."""

    channels: int = 3

    def __call__(self, clean: Tensor, generator: torch.Generator) -> Tensor:
        image = super().__call__(clean[: self.channels], generator)
        return torch.cat((image, clean[self.channels :, :: self.times, :: self.times]))


@dataclass(frozen=True)
class Splitter:
    """What joins images with further inputs, and takes crops of them apart again."""

    further: tuple[FurtherInput, ...]
    channels: int

    def join(self, images: ImageSource, degradation: Degradation | None) -> ImageSource:
        """The images with all that goes with them."""
        return _Joined(images, self.further, 1 if degradation is None else degradation.times)

    def degradation(self, degradation: Degradation | None) -> Degradation | None:
        """The same, of the image alone."""
        if degradation is None:
            return None
        return _FirstChannels(degradation.spec, degradation.steps, self.channels)

    def inputs(self, joined: Tensor, images: ImageSource) -> Inputs:
        """The network's inputs out of a batch of joined images."""
        found, channel = [joined[:, : self.channels]], self.channels
        height, width = joined.shape[-2:]
        for each in self.further:
            if each.shrinks is None:
                numbers = [int(number) for number in joined[:, -1, 0, 0].tolist()]
                names = (
                    [images.read(number)[0] for number in numbers] if each.files else ["" for _ in numbers]
                )
                found.append(torch.stack([each.for_image(name, height, width) for name in names]))
                continue
            count, step = each.shape[1], each.shrinks
            part = joined[:, channel : channel + count, ::step, ::step]
            found.append(part[..., : height // step, : width // step])
            channel += count
        return tuple(found)

    def example(self, joined: Example, images: ImageSource) -> Example:
        """The same of an example."""
        wanted = None if joined.ground_truth is None else joined.ground_truth[: self.channels]
        return Example(joined.name, self.inputs(joined.inputs[0], images), wanted)


@dataclass(frozen=True)
class _FurtherTraining:
    batches: TrainingBatches
    images: ImageSource
    splitter: Splitter

    def batch(self, step: int, first: int, count: int) -> Batch:
        """As :meth:`TrainingBatches.batch`."""
        found = self.batches.batch(step, first, count)
        wanted = found.ground_truth
        wanted = None if wanted is None else wanted[:, : self.splitter.channels]
        return Batch(self.splitter.inputs(found.inputs[0], self.images), wanted)


@dataclass(frozen=True)
class FurtherData(ImageData):
    """Images with further inputs; see :class:`csa2glmha.data.batches.Data`."""

    splitter: Splitter = Splitter((), 3)

    @classmethod
    def of(cls, data: ImageData, splitter: Splitter) -> Data:
        """Data of images, and what goes with them.

        Raises:
            DataError: something is missing, or does not fit.
        """
        joined = {
            name: splitter.join(images, data.degrade)
            for name, images in (("train", data.train), ("held_out", data.held_out))
        }
        for images in joined.values():
            for index in range(len(images)):  # training must not stop hours later
                splitter.inputs(images.read(index)[1][None], images)
        degrade = splitter.degradation(data.degrade)
        return cls(**{**vars(data), **joined, "degrade": degrade}, splitter=splitter)

    def calibration(self, size: int, count: int, seed: int, held_out: bool = False) -> list[Inputs]:
        """As :meth:`Data.calibration`."""
        images = self.held_out if held_out else self.train
        return [
            self.splitter.inputs(joined, images)
            for (joined,) in super().calibration(size, count, seed, held_out)
        ]

    def training(self, size: int | None, seed: int) -> TrainingBatches:  # type: ignore[override]
        """As :meth:`Data.training`."""
        return _FurtherTraining(super().training(size, seed), self.train, self.splitter)

    def examples(self, size: int, seed: int) -> list[Example]:
        """As :meth:`Data.examples`."""
        return [self.splitter.example(each, self.held_out) for each in super().examples(size, seed)]
