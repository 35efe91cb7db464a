"""Snapshots of a CASSI camera for training and evaluation: simulated from cubes, or recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.data.batches import Batch, Example, Inputs, seeded, shuffled
from csa2glmha.data.crops import ImageSource, augment, random_crop
from csa2glmha.data.inputs.cassi import (
    CassiScenes,
    initial_cube,
    measure,
    shifted_mask,
)
from csa2glmha.data.inputs.scenes import open_scenes
from csa2glmha.data.subset import split
from csa2glmha.metrics.outputs import SPECTRA, Outputs

#: Side of the parts that distillation trains on. Of parts of 96 x 96, MST-S learned nothing that held on
#: whole scenes (45.14 to 45.24 dB in six minutes).
TRAINING_SIDE = 128
#: Largest side of what distillation is evaluated on.
MAX_EVALUATION_SIZE = 256


@dataclass(frozen=True)
class CassiCrops:
    """Training batches through parts of the mask, one part for all samples of a step.

    Cubes are cropped, flipped and turned before they are measured, so the camera's geometry stays as it is.
    Recorded measurements are cut where the mask is; such a cut also holds light from beside the scene.

    Attributes:
        scenes: cubes, or recorded measurements (1, H, W').
        recorded: they are measurements.
        mask: (H, W).
        bands: of the model.
        size: side of the parts.
        seed: of everything random.
    """

    scenes: ImageSource
    recorded: bool
    mask: Tensor
    bands: int
    size: int
    seed: int

    def batch(self, step: int, first: int, count: int) -> Batch:
        """Initial cubes (count, bands, size, size), dispersed mask (1, bands, size, W'), and cubes."""
        generator = seeded("mask", self.seed, step)
        top, left = (
            int(torch.randint(side - self.size + 1, (), generator=generator)) for side in self.mask.shape
        )
        window = self.mask[top : top + self.size, left : left + self.size]
        measurements, cubes = [], []
        for number in range(first, first + count):
            _, scene, _ = self.scenes.read(shuffled(number, len(self.scenes), self.seed))
            if self.recorded:
                spread = scene.shape[-1] - self.mask.shape[1]
                measurements.append(scene[0, top : top + self.size, left : left + self.size + spread])
            else:
                source = seeded("crop", self.seed, number)
                cube, _ = augment(random_crop(scene, None, self.size, source)[0], None, source)
                cubes.append(cube)
                measurements.append(measure(cube, window))
        inputs = (initial_cube(torch.stack(measurements), self.bands), shifted_mask(window, self.bands))
        return Batch(inputs, torch.stack(cubes) if cubes else None)


@dataclass(frozen=True)
class CassiData:
    """Initial cubes and masks as inputs of MST; see :class:`csa2glmha.data.batches.Data`.

    Attributes:
        train, held_out: cubes, or recorded measurements (1, H, W'); disjoint.
        recorded: they are measurements.
        mask: (H, W), the whole.
        bands: of the model.
        multiple: heights and widths are multiples of it.
        source, notes: as in :class:`csa2glmha.data.batches.Data`.
    """

    train: ImageSource
    held_out: ImageSource
    recorded: bool
    mask: Tensor
    bands: int
    multiple: int
    source: str
    notes: tuple[str, ...]

    @property
    def degradation(self) -> str:
        """What makes the inputs, for the report."""
        return "none, recorded measurements" if self.recorded else "simulated CASSI measurement, noise-free"

    @property
    def training_images(self) -> int:
        return len(self.train)

    @property
    def held_out_images(self) -> int:
        return len(self.held_out)

    @property
    def outputs(self) -> Outputs:
        return SPECTRA

    @property
    def spectral(self) -> bool:
        return True

    @property
    def stretched(self) -> bool:
        return False

    @property
    def dispersed_mask(self) -> Tensor:
        """MST's second input, (1, bands, H, W')."""
        return shifted_mask(self.mask, self.bands)

    def frame(self, size: int) -> tuple[int, int]:
        """Height and width of the mask, whatever is asked for."""
        return int(self.mask.shape[0]), int(self.mask.shape[1])

    def check_side(self, size: int, option: str) -> None:
        """Refuse crops that the mask or the model has no room for.

        Raises:
            UsageError: with the option's name.
        """
        if size > self.largest_side or size % self.multiple:
            raise UsageError(
                f"{option} {size}: does not fit a mask of {_size(self.mask)}; give a multiple of "
                f"{self.multiple} up to {self.largest_side}"
            )

    @property
    def largest_side(self) -> int:
        """Of a square crop that mask and model have room for."""
        return int(min(self.mask.shape)) // self.multiple * self.multiple

    def evaluation_size(self, size: int) -> int:
        """All of the mask, as far as time allows.

        What helps on small parts of it need not help on the whole: on MST-S, 320 steps on parts of 96 x 96
        brought students 1.3 dB closer to the teacher there, and no closer on 256 x 256.
        """
        return int(min(*self.mask.shape, MAX_EVALUATION_SIZE)) // self.multiple * self.multiple

    def calibration(self, size: int, count: int, seed: int, held_out: bool = False) -> list[Inputs]:
        """As :meth:`csa2glmha.data.batches.Data.calibration`, every batch through a part of the mask."""
        scenes = self.held_out if held_out else self.train
        side = min(size, self.largest_side)
        crops = CassiCrops(scenes, self.recorded, self.mask, self.bands, side, seed)
        return [
            crops.batch(step, first, min(2, count - first)).inputs
            for step, first in enumerate(range(0, count, 2))
        ]

    def training(self, size: int | None, seed: int) -> CassiCrops:
        """As :meth:`csa2glmha.data.batches.Data.training`; at most as large as the mask."""
        side = min(size or TRAINING_SIDE, self.largest_side)
        return CassiCrops(self.train, self.recorded, self.mask, self.bands, side, seed)

    def examples(self, size: int, seed: int) -> list[Example]:
        """Whole held-out scenes through the whole mask."""
        return [self.example(self.held_out, index) for index in range(len(self.held_out))]

    def example(self, scenes: ImageSource, index: int) -> Example:
        """One of the scenes, cut to the mask's size from its centre."""
        if self.recorded:
            name, measurement, ground_truth = scenes.read(index)
            cube = initial_cube(measurement[0], self.bands)
        else:
            name, cube, ground_truth = CassiScenes(scenes, self.mask).read(index)
        return Example(name, (cube.unsqueeze(0), self.dispersed_mask), ground_truth)


def prepare_cassi(
    folder: Path | None,
    mask: Path | None,
    mat_key: str | None,
    bands: int,
    multiple: int,
    size: int,
    seed: int,
    mask_key: str | None = None,
    scale: float | None = None,
) -> CassiData:
    """Open scenes and mask, split off the held-out scenes.

    Args:
        folder: of cubes, of recorded measurements, or of images, which become synthetic spectra; None takes
            the photographs that come with scikit-image, likewise.
        mask: file of the aperture mask; None makes a random one of ``size`` x ``size``.
        mat_key: name of the array in .mat and .npz files.
        bands, multiple: of the model.
        size: of the mask, if there is no file.
        seed: decides the split, and the random mask.
        mask_key: name of the mask in its file.
        scale: of recorded measurements, as in :func:`~csa2glmha.data.inputs.recorded.white_of_measurements`.

    Raises:
        DataError, UsageError: nothing usable, fewer than two scenes, or no mask for recorded measurements.
    """
    if mask is None and size % multiple:
        raise UsageError(f"--input-size {size}: this model needs a multiple of {multiple}")
    scenes, aperture, recorded, source, notes = open_scenes(
        folder, mask, mat_key, bands, size, seed, mask_key, scale
    )
    bad = [side for side in aperture.shape if side % multiple]
    if bad:
        raise DataError(
            f"mask of {_size(aperture)}: this model needs height and width in multiples of {multiple}; cut it"
        )
    train, held_out = split(scenes, source, seed)
    return CassiData(train, held_out, recorded, aperture, bands, multiple, source, notes)


def _size(plane: Tensor) -> str:
    return "x".join(map(str, plane.shape))
