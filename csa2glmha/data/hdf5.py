"""The arrays of HDF5 files, MATLAB's version 7.3 among them, read from that one file alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import h5py
import numpy as np

from csa2glmha.core.errors import DataError
from csa2glmha.core.text import quoted
from csa2glmha.data.variables import NUMBER_CLASSES, Array, Variable

#: What MATLAB writes on every array, and what a file of its begins with. hdf5storage writes both.
_CLASS, _HEADER = "MATLAB_class", b"MATLAB 7.3 MAT-file"


def hdf5_variables(path: Path) -> dict[str, Variable]:
    """The arrays of real numbers at the top of an HDF5 file.

    MATLAB lists axes from the last to the first. Arrays that it wrote, as their attribute or the file's
    header says, are turned to the order that MATLAB shows; all others keep the order of the file.

    Raises:
        DataError: something there lies in another file. It is never followed: who sends a file must not
            decide which others are read.
    """
    with path.open("rb") as stream:
        by_header = stream.read(len(_HEADER)) == _HEADER
    found = {}
    with h5py.File(path) as file:
        for name in file:
            link = file.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise _elsewhere(path, name, "is a link")
            item = file[name]
            if not isinstance(item, h5py.Dataset) or item.dtype.kind not in "fiu" or item.shape is None:
                continue
            if item.is_virtual or item.external:
                raise _elsewhere(path, name, "keeps its values in other files")
            kind = item.attrs.get(_CLASS)
            if kind is not None and bytes(np.bytes_(kind)).decode("latin-1") not in NUMBER_CLASSES:
                continue  # text, for one, is stored as numbers
            matlab = by_header or kind is not None
            shape = tuple(reversed(item.shape)) if matlab else tuple(item.shape)
            load = partial(_load, path, name, matlab)
            found[name] = Variable(shape, load, item.dtype.itemsize, ordered=matlab)
    return found


def _load(path: Path, name: str, matlab: bool) -> Array:
    with h5py.File(path) as file:
        array = np.asarray(file[name])
    return array.T if matlab else array


def _elsewhere(path: Path, name: str, what: str) -> DataError:
    return DataError(
        f"{str(path)!r}: {quoted(name)} {what}, which is not followed; store the array itself in the file"
    )
