"""Hyperspectral cubes from files and into files.

Cubes are float32 tensors (bands, H, W), values as stored: usually reflectance in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.io
import torch
from torch import Tensor

from csa2glmha.core.errors import DataError, UnfitError
from csa2glmha.core.files import atomic_path
from csa2glmha.data.arrays import find_array, to_float32
from csa2glmha.data.units import Extent, refuse_unknown, white_of_cubes


def read_cube(path: Path, bands: int, mat_key: str | None = None, white: float | None = None) -> Tensor:
    """Read a hyperspectral cube from a .mat (any version), .npy, .npz or multi-band .tif file.

    Args:
        path: the file. The bands are its last axis, as usual, or its first; the number of bands tells which.
        bands: expected number of bands.
        mat_key: name of the cube in a .mat or .npz file; without, there must be one 3-D array only.
        white: what floats are divided by; None: by what :func:`~csa2glmha.data.units.white_of_cubes` says of
            this file alone, 1 for fractions.

    Returns:
        float32 (bands, H, W): 8- and 16-bit unsigned integers scaled to [0, 1], floats by ``white``.

    Raises:
        DataError: the file cannot be read, holds no or several 3-D arrays, one with another number of bands
            or with the bands on the wrong axis, or values that are not finite or of unknown units.
    """
    stored = read_stored_cube(path, bands, mat_key)
    white = white_of_cubes({path: stored.extent}).value if white is None else white
    return scale_cube(stored, white)


@dataclass(frozen=True)
class StoredCube:
    """A cube as it is in its file, except that integers are scaled.

    Attributes:
        values: (bands, H, W).
        extent: of the values.
        ordered: its file says, or its bands show, in which order its axes are.
    """

    values: Tensor
    extent: Extent
    ordered: bool


def read_stored_cube(path: Path, bands: int, mat_key: str | None) -> StoredCube:
    """Read a cube; what its numbers mean is for the caller to say.

    Raises:
        DataError: as :func:`read_cube`.
    """
    found = find_array(path, 3, mat_key)
    axes = _bands_first(found.shape, bands, path)
    array = found.read()
    bits = array.dtype.itemsize * 8 if array.dtype.kind == "u" else None
    values = to_float32(array.transpose(axes), path)
    extent = Extent.of(values, bits)
    refuse_unknown(path, extent)
    # Who writes height x width x bands does not turn axes round; bands in front may be MATLAB's order.
    ordered = found.variable.ordered or axes[0] == 2
    return StoredCube(torch.from_numpy(values), extent, ordered)


def scale_cube(stored: StoredCube, white: float) -> Tensor:
    """The cube in place, as fractions of white."""
    return stored.values if stored.extent.bits is not None or white == 1 else stored.values.div_(white)


def write_cube(path: Path, cube: Tensor) -> None:
    """Write a cube (bands, H, W) as float32 H x W x bands, values as they are: .npy, or .mat (v5, "cube").

    The file appears complete or not at all; an earlier one is replaced.

    Raises:
        UnfitError: a value is not finite, or a .mat file cannot hold that much.
        OutputError: it cannot be written.
    """
    if not torch.isfinite(cube).all():
        raise UnfitError(f"cannot write {str(path)!r}: it has values that are not finite; check the model")
    array = np.ascontiguousarray(cube.detach().cpu().float().permute(1, 2, 0).numpy())
    if path.suffix == ".mat" and array.nbytes >= 2**31:
        raise UnfitError(f"cannot write {str(path)!r}: .mat files hold at most 2 GB; use --format npy")
    with atomic_path(path) as temporary:
        if path.suffix == ".mat":
            scipy.io.savemat(temporary, {"cube": array}, do_compression=True)
        else:
            np.save(temporary, array)


def _bands_first(sizes: tuple[int, ...], bands: int, path: Path) -> tuple[int, int, int]:
    """The axes of a cube in the order bands, height, width."""
    first, middle, last = (size == bands for size in sizes)
    shape = "x".join(map(str, sizes))
    if first and last:
        raise DataError(
            f"{str(path)!r} holds an array of {shape}: with {bands} bands, both its first and its last axis "
            "could be the bands; cut or pad the height"
        )
    if last:
        return 2, 0, 1
    if first:
        return 0, 1, 2
    if middle:
        raise DataError(
            f"{str(path)!r} holds an array of {shape} with the {bands} bands on the middle axis; "
            "store it as height x width x bands"
        )
    raise DataError(
        f"{str(path)!r} holds an array of {shape}, but the model has {bands} bands: none of its axes "
        "is that long; give cubes with that number of bands"
    )
