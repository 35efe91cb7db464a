"""Reading one array out of a scientific data file: MATLAB (any version), NumPy or TIFF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import scipy.io
import tifffile

from csa2glmha.errors import DataError

SUFFIXES = (".mat", ".npy", ".npz", ".tif", ".tiff")
SUFFIX_LIST = "mat, npy, npz or tif"

Array = npt.NDArray[Any]

_MATLAB_NUMBERS = {"double", "single", "logical"} | {
    f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class _Variable:
    """An array of real numbers in a file; its shape is known before it is read."""

    shape: tuple[int, ...]
    load: Callable[[], Array]

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))


def read_array(
    path: Path, ndim: int, key: str | None = None, key_option: str = "--mat-key", usual: str = ""
) -> Array:
    """Read the array of ``ndim`` dimensions from a .mat, .npy, .npz or .tif file, values as stored.

    MATLAB arrays have the axis order that MATLAB shows, also in version 7.3 files, which hold them reversed.

    Args:
        path: the file.
        ndim: dimensions of the array.
        key: its name in a .mat or .npz file; without, there must be one such array only. The other formats
            hold one array without a name, and need no key.
        key_option: what the user sets the key with, for messages.
        usual: the name to prefer where several arrays fit and no key says which.

    Raises:
        DataError: the file cannot be read, or does not hold that array.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"cannot read array file {str(path)!r}: unknown suffix {path.suffix!r}; give a {SUFFIX_LIST} file"
        )
    try:
        variables = reader(path)
    except Exception as error:  # damaged bytes make the decoders fail in any way there is
        raise _unreadable(path, error) from error
    variable = _choose(path, variables, ndim, key, key_option, usual)
    try:
        return variable.load()
    except Exception as error:
        raise _unreadable(path, error) from error


def to_float32(array: Array, path: Path) -> npt.NDArray[np.float32]:
    """Convert to float32: unsigned integers of 8 and 16 bits as fractions of their largest value.

    Raises:
        DataError: another type, or values that are not finite; ``path`` names the file in the message.
    """
    if array.dtype in (np.uint8, np.uint16):
        return array.astype(np.float32) / np.float32(np.iinfo(array.dtype).max)
    if array.dtype.kind != "f":
        raise DataError(
            f"{str(path)!r} holds numbers of type {array.dtype}, whose range is unknown; "
            "store floats in [0, 1], or unsigned integers of 8 or 16 bits"
        )
    # What overflows float32 becomes infinite, and is reported as such.
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise DataError(
            f"{str(path)!r} holds {bad} NaN or infinite values among {values.size}; repair or remove the file"
        )
    return values


def _choose(
    path: Path, variables: dict[str, _Variable], ndim: int, key: str | None, key_option: str, usual: str
) -> _Variable:
    where = repr(str(path))
    held = ", ".join(f"{name} ({variable})".strip() for name, variable in variables.items())
    held = held or "no array of real numbers"
    if key is not None and "" not in variables:
        if key not in variables:
            raise DataError(f"{where} has no array {key!r}, but {held}; name another with {key_option}")
        variables = {key: variables[key]}
    fitting = {
        name: variable
        for name, variable in variables.items()
        if len(variable.shape) == ndim and 0 not in variable.shape
    }
    if usual in fitting:
        return fitting[usual]
    if not fitting:
        which = "is" if key is None else f"named {key!r} is"
        raise DataError(
            f"{where}: no {ndim}-D array {which} there, but {held}; give another file, "
            f"or name another array with {key_option}"
        )
    if len(fitting) > 1:
        raise DataError(f"{where} holds several {ndim}-D arrays: {held}; say which with {key_option}")
    return next(iter(fitting.values()))


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    reason = " ".join(reason.split())[:160]
    return DataError(f"cannot read array file {str(path)!r}: {reason}; give an intact {SUFFIX_LIST} file")


def _matlab(path: Path) -> dict[str, _Variable]:
    # Opened here because neither of the libraries says when a file is missing.
    with path.open("rb") as stream:
        if h5py.is_hdf5(path):
            return _hdf5(path)
        held = scipy.io.whosmat(stream)
    return {
        name: _Variable(tuple(shape), partial(_load_matlab5, path, name))
        for name, shape, kind in held
        if kind in _MATLAB_NUMBERS
    }


def _hdf5(path: Path) -> dict[str, _Variable]:
    with h5py.File(path) as file:
        return {
            # HDF5 lists a MATLAB array's axes from the last to the first.
            name: _Variable(tuple(reversed(item.shape)), partial(_load_hdf5, path, name))
            for name, item in file.items()
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu"
        }


def _load_hdf5(path: Path, name: str) -> Array:
    with h5py.File(path) as file:
        return np.asarray(file[name]).T


def _load_matlab5(path: Path, name: str) -> Array:
    return np.asarray(scipy.io.loadmat(path, variable_names=[name])[name])


def _npz(path: Path) -> dict[str, _Variable]:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    return {name: _in_memory(array) for name, array in arrays.items() if array.dtype.kind in "fiub"}


def _npy(path: Path) -> dict[str, _Variable]:
    return {"": _in_memory(np.load(path, allow_pickle=False))}


def _tiff(path: Path) -> dict[str, _Variable]:
    return {"": _in_memory(tifffile.imread(path))}


def _in_memory(array: Array) -> _Variable:
    return _Variable(array.shape, lambda: array)


_READERS: dict[str, Callable[[Path], dict[str, _Variable]]] = {
    ".mat": _matlab,
    ".npy": _npy,
    ".npz": _npz,
    ".tif": _tiff,
    ".tiff": _tiff,
}
