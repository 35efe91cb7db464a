"""What networks take, from files: images, views, cubes, and what was seen through a mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from csa2glmha.commands.evaluate import OpenModel
from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.core.progress import progress, say
from csa2glmha.data.arrays import AmbiguousArrayError, find_array
from csa2glmha.data.batches import Inputs
from csa2glmha.data.images import MemoryImages, read_stored
from csa2glmha.data.inputs.cassi import CassiScenes, initial_cube, shifted_mask
from csa2glmha.data.inputs.masks import load_mask
from csa2glmha.data.inputs.recorded import (
    USUAL,
    StoredMeasurement,
    judge_measurements,
    misfit,
    read_stored_measurement,
    scale_measurement,
)
from csa2glmha.data.inputs.spectral import order_note, read_cube, read_stored_cube
from csa2glmha.data.inputs.stretch import stretch
from csa2glmha.data.open import refuse_cassi_options
from csa2glmha.data.sources import DUAL_PIXEL_CHANNELS, IMAGE_CHANNELS, is_spectral
from csa2glmha.data.stored import StoredImage
from csa2glmha.data.units import Extent, judge_cubes
from csa2glmha.inference.jobs import Formats, Job, array_formats, image_formats


@dataclass(frozen=True)
class Source:
    """What was read for one output.

    Attributes:
        inputs: with a batch axis of one.
        stored: the image's file as it is, None if it is none.
    """

    inputs: Inputs
    stored: StoredImage | None = None


#: Reads a job's files, in so many bytes of memory.
Read = Callable[[Job, int], Source]


@dataclass(frozen=True)
class InputKind:
    """What a network reads.

    Attributes:
        formats: of the files.
        reader: makes the function that reads one of these inputs.
    """

    formats: Formats
    reader: Callable[[Sequence[Job]], Read]


def input_kind(model: OpenModel, options: ConvertOptions, cube_suffix: str) -> InputKind:
    """The kind of inputs that a network takes.

    Args:
        model: the network.
        options: on masks, measurements and arrays.
        cube_suffix: of outputs that are cubes.

    Raises:
        UsageError: options that do not fit the network.
        DataError: the mask cannot be used.
    """
    if model.architecture == "mst":
        # Cubes whatever their number of bands: six are no dual-pixel views here.
        return InputKind(array_formats(cube_suffix, model.bands), _snapshots(model, options).reader)
    suffix = cube_suffix if is_spectral(model.channels, model.bands) else ""
    refuse_cassi_options(model.architecture or "this model", options)
    model.stretches(options)  # or a word on --no-stretch
    if model.channels == DUAL_PIXEL_CHANNELS:
        return InputKind(image_formats(suffix, model.bands, views=True), lambda jobs: _read_views)
    if model.channels in IMAGE_CHANNELS:
        read = partial(_read_image, channels=model.channels, stretched=model.stretches(options))
        return InputKind(image_formats(suffix, model.bands), lambda jobs: read)
    arrays = array_formats(suffix, model.bands)
    return InputKind(arrays, lambda jobs: _cube_reader(jobs, model.channels, options.mat_key))


def _read_image(job: Job, room: int, channels: int, stretched: bool) -> Source:
    image, stored = read_stored(job.sources[0], channels, room)
    image = stretch(image) if stretched else image
    return Source((image.unsqueeze(0),), stored)


def _read_views(job: Job, room: int) -> Source:
    (left, stored), (right, _) = (read_stored(path, 3, room // 2) for path in job.sources)
    if left.shape != right.shape:
        raise DataError(f"{str(job.sources[0])!r} is not of the size of its right view")
    return Source((torch.cat((left, right)).unsqueeze(0),), stored)


def _cube_reader(jobs: Sequence[Job], bands: int, mat_key: str | None) -> Read:
    white = _judge_cubes([job.sources[0] for job in jobs], bands, mat_key)
    return lambda job, room: Source((read_cube(job.sources[0], bands, mat_key, white).unsqueeze(0),))


def _judge_cubes(paths: Sequence[Path], bands: int, mat_key: str | None) -> float:
    """What floats of all these cubes are divided by; those that cannot be read are met again later."""
    extents: dict[Path, Extent] = {}
    unordered = []
    for path in progress(paths, what="reading cubes", unit="file"):
        try:
            cube = read_stored_cube(path, bands, mat_key)
        except DataError:
            continue
        extents[path] = cube.extent
        if not cube.ordered:
            unordered.append(path)
    white = judge_cubes(extents)
    for note in white.notes + order_note(unordered):
        say(note)
    return white.value


@dataclass(frozen=True)
class _Snapshots:
    """Recorded measurements, and cubes that measurements are simulated of, all through one mask."""

    mask: Tensor
    bands: int
    mat_key: str | None
    scale: float | None

    def reader(self, jobs: Sequence[Job]) -> Read:
        """Judge the units of all inputs together.

        Raises:
            DataError: they cannot be told.
            UsageError: a scale of measurements, and there are none.
        """
        paths = [job.sources[0] for job in jobs]
        recorded = {path for path in paths if self._is_measurement(path)}
        cubes = _judge_cubes([path for path in paths if path not in recorded], self.bands, self.mat_key)
        stored: dict[Path, StoredMeasurement] = {}
        for path in recorded:
            try:
                stored[path] = self._measurement(path)
            except DataError:
                continue  # met again when it is its turn
        if self.scale is not None and not recorded:
            raise UsageError(f"--measurement-scale {self.scale:g}: no input is a measurement; leave it out")
        white = judge_measurements(dict(sorted(stored.items())), self.mask, self.bands, self.scale)
        for note in white.notes:
            say(note)
        dispersed = shifted_mask(self.mask, self.bands)

        def read(job: Job, room: int) -> Source:
            path = job.sources[0]
            if path in recorded:
                measurement = scale_measurement(self._measurement(path), white.value, self.bands)
                start = initial_cube(measurement, self.bands)
            else:
                start = self._simulated(path, cubes)
            return Source((start.unsqueeze(0), dispersed))

        return read

    def _is_measurement(self, path: Path) -> bool:
        """A file with a plane is a measurement, whatever else it holds."""
        try:
            find_array(path, 2, self.mat_key, usual=USUAL)
        except AmbiguousArrayError:  # which reading it will say
            return True
        except DataError:
            return False
        return True

    def _measurement(self, path: Path) -> StoredMeasurement:
        stored = read_stored_measurement(path, self.mat_key)
        reason = misfit(stored.values, self.mask, self.bands)
        if reason is not None:
            raise DataError(f"{str(path)!r} is a measurement of {reason}; give the mask it was taken through")
        return stored

    def _simulated(self, path: Path, white: float) -> Tensor:
        cube = read_cube(path, self.bands, self.mat_key, white)
        (rows, columns), (height, width) = cube.shape[1:], self.mask.shape
        if rows < height or columns < width:
            say(f"{path}: smaller than the mask of {height}x{width}, so padded by reflection")
        if rows > height or columns > width:
            say(f"{path}: {rows}x{columns}, only its centre is under the mask of {height}x{width}")
        return CassiScenes(MemoryImages([(path.name, cube)]), self.mask).read(0)[1]


def _snapshots(model: OpenModel, options: ConvertOptions) -> _Snapshots:
    file = options.mask
    if file is None:
        raise UsageError("MST reconstructs what was seen through an aperture mask: give its file, --mask")
    mask = load_mask(file, options.mask_key)
    if model.size is not None and tuple(mask.shape) != model.size:
        raise UsageError(
            f"--mask {file}: has {mask.shape[0]}x{mask.shape[1]} pixels, the one baked in has "
            f"{model.size[0]}x{model.size[1]}"
        )
    model.check_mask(file, options.mask_key)
    return _Snapshots(mask, model.channels, options.mat_key, options.measurement_scale)
