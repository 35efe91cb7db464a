"""Coded aperture snapshot spectral imaging (CASSI): masks, measurements, and scenes as MST takes them.

The aperture mask covers the scene, a prism moves band i by ``step * i`` columns to the right, and the
sensor adds the bands up: a cube (bands, H, W) gives one measurement (H, W + step * (bands - 1)). The
convention is that of Cai et al., CVPR 2022 (arXiv 2111.07910).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.core.dispersion import DISPERSION, dispersed_width
from csa2glmha.core.errors import DataError
from csa2glmha.data.crops import ImageSource
from csa2glmha.data.degrade import reflect_pad

#: Bands of the published MST.
BANDS = 28


def disperse(cube: Tensor, step: int = DISPERSION) -> Tensor:
    """Move band i of (..., bands, H, W) by ``step * i`` columns: (..., bands, H, W + step * (bands - 1))."""
    bands, width = cube.shape[-3], cube.shape[-1]
    dispersed = cube.new_zeros(*cube.shape[:-1], dispersed_width(width, bands, step))
    for band in range(bands):
        dispersed[..., band, :, step * band : step * band + width] = cube[..., band, :, :]
    return dispersed


def shifted_mask(mask: Tensor, bands: int = BANDS, step: int = DISPERSION) -> Tensor:
    """Disperse a mask (H, W) that is the same for all bands: MST's mask input (1, bands, H, W')."""
    return disperse(mask.expand(1, bands, -1, -1), step)


def measure(cube: Tensor, mask: Tensor, step: int = DISPERSION) -> Tensor:
    """Simulate the measurement (..., H, W') of a cube (..., bands, H, W) through a mask (H, W), noise-free.

    Raises:
        DataError: cube and mask differ in height or width.
    """
    if cube.shape[-2:] != mask.shape:
        raise DataError(
            f"a cube of shape {tuple(cube.shape)} does not fit a mask of shape {tuple(mask.shape)}: "
            "cut both to the same height and width"
        )
    return disperse(cube * mask, step).sum(dim=-3)


def initial_cube(measurement: Tensor, bands: int = BANDS, step: int = DISPERSION) -> Tensor:
    """Estimate a cube (..., bands, H, W) from a measurement (..., H, W'): MST's first input.

    Band i is the measurement from column ``step * i`` on, times 2 / bands.

    Raises:
        DataError: the measurement is not wider than the dispersion.
    """
    width = measurement.shape[-1] - step * (bands - 1)
    if width < 1:
        raise DataError(
            f"a measurement of shape {tuple(measurement.shape)} is too narrow: {bands} bands dispersed "
            f"by {step} columns take {step * (bands - 1)} columns and one more for each of the scene"
        )
    scaled = measurement / bands * 2
    return torch.stack([scaled[..., step * i : step * i + width] for i in range(bands)], dim=-3)


@dataclass(frozen=True)
class CassiScenes:
    """Cubes as a CASSI camera sees them: initial cubes as inputs, the cubes themselves as targets.

    Cut no crops from these, and turn or flip none: an initial cube belongs to its place under the mask. For
    other sizes, give a part of the mask; its shape is that of every scene.

    Attributes:
        cubes: of one number of bands; the centre of each is taken, smaller ones are padded by reflection.
        mask: (H, W).
    """

    cubes: ImageSource
    mask: Tensor

    def __len__(self) -> int:
        return len(self.cubes)

    def read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        """Return name, initial cube (bands, H, W), and cube (bands, H, W), with H and W of the mask."""
        name, cube, _ = self.cubes.read(index)
        cube = _centre(cube, *self.mask.shape)
        return name, initial_cube(measure(cube, self.mask), len(cube)), cube


@dataclass(frozen=True)
class Window:
    """A part of a recorded measurement, and of the mask it was taken through.

    Attributes:
        top, left: its place in pixels.
        measurement: (h, w'), with w' as wide as the w columns of scene need.
        mask: (h, w).
    """

    top: int
    left: int
    measurement: Tensor
    mask: Tensor


def windows(measurement: Tensor, mask: Tensor, size: int = 256, step: int = DISPERSION) -> list[Window]:
    """Cover a measurement (H, W') and its mask (H, W) by windows of ``size`` x ``size`` pixels of scene.

    They lie side by side; the last of a row or column is moved back to end at the border. A window's
    measurement also holds light from the scene to its left and right, up to ``step * (bands - 1)`` columns
    away: only the whole measurement, with the whole mask, is free of that.

    Raises:
        DataError: the mask is smaller than a window, or does not fit the measurement.
    """
    height, width = mask.shape
    spread = measurement.shape[-1] - width
    if measurement.shape[0] != height or spread < 0 or spread % step:
        raise DataError(
            f"a measurement of shape {tuple(measurement.shape)} does not fit a mask of shape "
            f"{tuple(mask.shape)}: give the mask it was taken through, of the same height, and narrower by "
            f"{step} columns for each band but one"
        )
    if size > min(height, width):
        raise DataError(
            f"a mask of shape {tuple(mask.shape)} has no window of {size} x {size}; give a smaller size"
        )
    return [
        Window(
            top,
            left,
            measurement[top : top + size, left : left + size + spread],
            mask[top : top + size, left : left + size],
        )
        for top in _starts(height, size)
        for left in _starts(width, size)
    ]


def _starts(length: int, size: int) -> list[int]:
    return [*range(0, length - size, size), length - size]


def _centre(cube: Tensor, height: int, width: int) -> Tensor:
    missing = [max(0, wanted - size) for wanted, size in zip((height, width), cube.shape[-2:], strict=True)]
    if any(missing):
        cube = reflect_pad(cube, 0, missing[1], 0, missing[0])
    top, left = (cube.shape[-2] - height) // 2, (cube.shape[-1] - width) // 2
    return cube[..., top : top + height, left : left + width]
