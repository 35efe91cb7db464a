"""Reading one array out of a scientific data file: MATLAB (any version), NumPy or TIFF."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np
import numpy.typing as npt
import scipy.io
import tifffile

from csa2glmha.core.device import free_memory
from csa2glmha.core.errors import DataError
from csa2glmha.core.text import quoted, shown
from csa2glmha.data.hdf5 import hdf5_variables
from csa2glmha.data.matlab5 import check_array
from csa2glmha.data.tiff_directories import check_directories
from csa2glmha.data.variables import NUMBER_CLASSES, Array, Variable

SUFFIXES = (".mat", ".npy", ".npz", ".tif", ".tiff")
SUFFIX_LIST = "mat, npy, npz or tif"

#: Deflate, which all of these formats use, makes at most 1032 bytes of one; twice that as float32.
_SMALL, _DENSEST = 2**20, 2100
#: Types of integers whose largest value is taken for white.
SCALED_TYPES = (np.uint8, np.uint16)

#: Arrays of a file that a message lists.
_LISTED = 10


class AmbiguousArrayError(DataError):
    """A file holds several arrays that fit, and nothing says which is meant."""


@dataclass(frozen=True)
class StoredArray:
    """One array of a file that was found but not read yet.

    Attributes:
        path: the file.
        name: of the array; "" where the format knows none.
        variable: its shape, and how to read it.
    """

    path: Path
    name: str
    variable: Variable

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, as the file declares it."""
        return self.variable.shape

    def read(self) -> Array:
        """Read it, values as stored.

        Raises:
            DataError: the file is damaged, or the array larger than the memory or than such a file can hold.
        """
        needed, free = self.variable.needed_bytes, free_memory()
        if needed > _SMALL + _DENSEST * self.path.stat().st_size:
            raise DataError(
                f"{str(self.path)!r} declares an array of {self.variable}, but has only "
                f"{self.path.stat().st_size} bytes; give an intact file"
            )
        if needed > free:
            raise DataError(
                f"{str(self.path)!r} declares an array of {self.variable}, which takes {needed / 1e9:.1f} GB "
                f"to read; {free / 1e9:.1f} GB are free: cut it into smaller files"
            )
        try:
            array = self.variable.load()
            if array.shape != self.shape:
                raise ValueError(f"it declares an array of {self.variable} and holds another")
        except Exception as error:
            raise _unreadable(self.path, error) from error
        return array


def find_array(
    path: Path, ndim: int, key: str | None = None, key_option: str = "--mat-key", usual: str = ""
) -> StoredArray:
    """Find the array of ``ndim`` dimensions in a .mat, .npy, .npz or .tif file by what the file declares.

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
    variables = _variables(path)
    name = _choose(path, variables, ndim, key, key_option, usual)
    return StoredArray(path, name, variables[name])


def stored_arrays(path: Path) -> dict[str, StoredArray]:
    """All arrays of numbers that a .mat, .npy, .npz or .tif file declares, by name; none of them is read.

    Raises:
        DataError: the file cannot be read.
    """
    return {name: StoredArray(path, name, variable) for name, variable in _variables(path).items()}


def _variables(path: Path) -> dict[str, Variable]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"cannot read array file {str(path)!r}: unknown suffix {path.suffix!r}; give a {SUFFIX_LIST} file"
        )
    try:
        return reader(path)
    except DataError:
        raise
    except Exception as error:  # damaged bytes make the decoders fail in any way there is
        raise _unreadable(path, error) from error


def read_array(
    path: Path, ndim: int, key: str | None = None, key_option: str = "--mat-key", usual: str = ""
) -> Array:
    """Read the array that :func:`find_array` finds, values as stored.

    Raises:
        DataError: as :func:`find_array` and :meth:`StoredArray.read`.
    """
    return find_array(path, ndim, key, key_option, usual).read()


def to_float32(array: Array, path: Path) -> npt.NDArray[np.float32]:
    """Copy to contiguous float32: unsigned integers of 8 and 16 bits as fractions of their largest value.

    Raises:
        DataError: another type, or values that are not finite; ``path`` names the file in the message.
    """
    if array.dtype.kind != "f" and array.dtype not in SCALED_TYPES:
        raise DataError(
            f"{str(path)!r} holds numbers of type {array.dtype}, whose range is unknown; "
            "store floats in [0, 1], or unsigned integers of 8 or 16 bits"
        )
    # What overflows float32 becomes infinite, and is reported as such.
    with np.errstate(over="ignore"):
        values = np.array(array, np.float32, order="C")
    if array.dtype.kind != "f":
        values /= np.float32(np.iinfo(array.dtype).max)
        return values
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise DataError(
            f"{str(path)!r} holds {bad} NaN or infinite values among {values.size}; repair or remove the file"
        )
    return values


def _choose(
    path: Path, variables: dict[str, Variable], ndim: int, key: str | None, key_option: str, usual: str
) -> str:
    where, held = repr(str(path)), in_words(variables)
    if key is not None and "" not in variables:
        if key not in variables:
            raise DataError(f"{where} has no array {quoted(key)}, but {held}; name another with {key_option}")
        variables = {key: variables[key]}
    fitting = {
        name: variable
        for name, variable in variables.items()
        if len(variable.shape) == ndim and 0 not in variable.shape
    }
    if usual in fitting:
        return usual
    if not fitting:
        which = "is" if key is None else f"named {quoted(key)} is"
        raise DataError(
            f"{where}: no {ndim}-D array {which} there, but {held}; give another file, "
            f"or name another array with {key_option}"
        )
    if len(fitting) > 1:
        raise AmbiguousArrayError(
            f"{where} holds several {ndim}-D arrays: {held}; say which with {key_option}"
        )
    return next(iter(fitting))


def in_words(variables: Mapping[str, Variable]) -> str:
    """The arrays of a file with their shapes, for messages."""
    named = [f"{shown(name)} ({variable})".strip() for name, variable in variables.items()]
    more = [f"{len(named) - _LISTED} more"] if len(named) > _LISTED else []
    return ", ".join(named[:_LISTED] + more) or "no array of real numbers"


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    reason = " ".join(reason.split())[:160]
    return DataError(f"cannot read array file {str(path)!r}: {reason}; give an intact {SUFFIX_LIST} file")


def _matlab(path: Path) -> dict[str, Variable]:
    # Opened here because neither of the libraries says when a file is missing.
    with path.open("rb") as stream:
        if h5py.is_hdf5(path):
            return hdf5_variables(path)
        held = scipy.io.whosmat(stream)
    return {
        name: Variable(tuple(shape), partial(_load_matlab5, path, name), NUMBER_CLASSES[kind])
        for name, shape, kind in held
        if kind in NUMBER_CLASSES
    }


def _load_matlab5(path: Path, name: str) -> Array:
    check_array(path, name)
    # In the type that MATLAB shows: it stores whole numbers of type double as integers, to save space.
    return np.asarray(scipy.io.loadmat(path, variable_names=[name], mat_dtype=True)[name])


def _npz(path: Path) -> dict[str, Variable]:
    with zipfile.ZipFile(path) as archive:
        members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
        heads = {}
        for info in members:
            with archive.open(info) as stream:
                heads[info.filename.removesuffix(".npy")] = _numpy_head(stream)
    return {
        name: Variable(shape, partial(_load_npz, path, name), dtype.itemsize)
        for name, (shape, dtype) in heads.items()
        if dtype.kind in "fiub"
    }


def _load_npz(path: Path, name: str) -> Array:
    with np.load(path, allow_pickle=False) as file:
        return np.asarray(file[name])


def _numpy_head(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that the header of an array in NumPy's format declares."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:  # of structures with names beyond ASCII, which are no arrays of numbers
        return (), np.dtype("V1")
    shape, _, dtype = readers[version](stream)
    return tuple(shape), dtype


def _npy(path: Path) -> dict[str, Variable]:
    with path.open("rb") as stream:
        shape, dtype = _numpy_head(stream)
    # Numbers of other types are refused by what they are, objects by NumPy.
    if dtype.hasobject:
        np.load(path, allow_pickle=False)
    return {"": Variable(shape, partial(_load_npy, path), dtype.itemsize)}


def _load_npy(path: Path) -> Array:
    # Mapped: a header that declares more than the file holds is refused before memory is taken.
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _tiff(path: Path) -> dict[str, Variable]:
    with _open_tiff(path) as file:
        series = file.series[0]
        return {"": Variable(tuple(series.shape), partial(_load_tiff, path), series.dtype.itemsize)}


def _load_tiff(path: Path) -> Array:
    with _open_tiff(path) as file:
        return np.asarray(file.asarray(series=0))


def _open_tiff(path: Path) -> tifffile.TiffFile:
    with path.open("rb") as stream:
        check_directories(stream)
    # The metadata of these kinds may name other files as parts of the image.
    return tifffile.TiffFile(path, is_ome=False, is_micromanager=False, is_mmstack=False, is_ndtiff=False)


_READERS: dict[str, Callable[[Path], dict[str, Variable]]] = {
    ".mat": _matlab,
    ".npy": _npy,
    ".npz": _npz,
    ".tif": _tiff,
    ".tiff": _tiff,
}
