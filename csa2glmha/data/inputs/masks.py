"""Aperture masks of CASSI cameras from files: planes, or stacks of one plane for every band."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csa2glmha.core.dispersion import DISPERSION
from csa2glmha.core.errors import DataError
from csa2glmha.core.files import sha256_of
from csa2glmha.data.arrays import AmbiguousArrayError, StoredArray, find_array, to_float32

#: What the files of the published MST call the mask, and the mask in the place of every band.
PLANE, STACK = "mask", "mask_3d_shift"
#: What messages name.
KEY_OPTION = "--mask-key"
#: Copies of one mask may differ by the rounding of single precision.
_ROUNDING = 1e-6

Values = npt.NDArray[np.float32]


def load_mask(path: Path, key: str | None = None, step: int = DISPERSION) -> Tensor:
    """Read an aperture mask (H, W) of transmissions in [0, 1], float32.

    Args:
        path: a .mat, .npy, .npz or .tif file.
        key: the mask's name in a .mat or .npz file; without, it is "mask" or the only 2-D array. A 3-D array
            serves where there is no 2-D one and all its bands are the same mask: repeated, or band i moved by
            ``step * i`` columns to the right.
        step: of the dispersion, in columns.

    Raises:
        DataError: the file cannot be read, or holds no such array or values outside [0, 1].
    """
    try:
        values = _values(find_array(path, 2, key, KEY_OPTION, PLANE))
    except AmbiguousArrayError:
        raise
    except DataError as no_plane:
        try:
            stack = find_array(path, 3, key, KEY_OPTION, STACK)
        except AmbiguousArrayError:
            raise
        except DataError:
            raise no_plane from None
        values = _of_stack(_values(stack), step, path)
    low, high = float(values.min()), float(values.max())
    if low < 0 or high > 1:
        raise DataError(
            f"mask {str(path)!r} has values from {low:g} to {high:g}; give transmissions in [0, 1]"
        )
    return torch.from_numpy(values)


def mask_provenance(path: Path, key: str | None) -> dict[str, str]:
    """What a student's metadata say of the mask it is made for.

    The values count, not the file: that may hold several masks, and another file may hold the same.
    """
    return {"mask": path.name, "mask_sha256": sha256_of(path), "mask_values_sha256": _digest(path, key)}


def is_made_for(metadata: Mapping[str, str], path: Path, key: str | None) -> bool:
    """Whether a file's mask is the one that is baked in, as far as the metadata tell."""
    if "mask_values_sha256" in metadata:
        return metadata["mask_values_sha256"] == _digest(path, key)
    return metadata.get("mask_sha256") in (None, sha256_of(path))


def _digest(path: Path, key: str | None) -> str:
    mask = load_mask(path, key)
    return hashlib.sha256(f"{tuple(mask.shape)}".encode() + mask.numpy().astype("<f4").tobytes()).hexdigest()


def _values(found: StoredArray) -> Values:
    array = found.read()
    # A mask of zeros and ones may be stored as truth values, or as integers of any kind.
    if array.dtype.kind in "biu" and array.min() >= 0 and array.max() <= 1:
        return np.array(array, np.float32, order="C")
    return to_float32(array, found.path)


def _of_stack(stack: Values, step: int, path: Path) -> Values:
    """The mask of a stack with the bands on its last axis, or on its first."""
    for bands_first in (stack.transpose(2, 0, 1), stack):
        width = bands_first.shape[-1]
        for shift in (0, step):
            seen = width - shift * (len(bands_first) - 1)
            if seen < 1:
                continue
            first = bands_first[0, :, :seen]
            # Beside each copy there is nothing, so that no other array is taken for a stack of masks.
            if all(
                np.allclose(band[:, shift * i : shift * i + seen], first, atol=_ROUNDING)
                and not np.any(band[:, : shift * i])
                and not np.any(band[:, shift * i + seen :])
                for i, band in enumerate(bands_first)
            ):
                return np.array(first, order="C")
    size = "x".join(map(str, stack.shape))
    raise DataError(
        f"{str(path)!r} holds an array of {size} whose bands are not all the same mask, neither in place nor "
        f"each {step} columns to the right of the one before; give the mask itself, height x width"
    )


__all__ = ["is_made_for", "load_mask", "mask_provenance"]
