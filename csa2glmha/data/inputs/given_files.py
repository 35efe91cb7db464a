"""Files of what a network takes beside its image: images, and arrays, told apart by their shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from csa2glmha.core.errors import DataError
from csa2glmha.core.text import shown
from csa2glmha.data.arrays import StoredArray, in_words, stored_arrays
from csa2glmha.data.images import SUFFIXES as IMAGE_SUFFIXES
from csa2glmha.data.images import read_image

#: Of files of arrays, beside images.
ARRAYS = (".npy", ".npz", ".mat")
SUFFIXES = (*IMAGE_SUFFIXES, *ARRAYS)
WANTED = "an image, .npy, .npz or .mat file"
Shape = tuple[int, ...]
#: An order of axes, and the shape that an array of it is then brought to.
_Way = tuple[tuple[int, ...], Shape]


def read_given(path: Path, key: str | None, shape: Shape, what: str) -> Tensor:
    """An image or array of this shape.

    Arrays may have an axis of one more or less, and maps their channels last, as in MATLAB.

    Args:
        path: of one of :data:`SUFFIXES`.
        key: the name of the array in a .npz or .mat file of several.
        shape: (C, H, W) of a map, any other of what is none.
        what: it is, in messages.

    Raises:
        DataError: the file cannot be read, or holds no such array, or several.
    """
    if path.suffix.lower() not in ARRAYS:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise DataError(
                f"{str(path)!r}: is an image; give an array of {_sizes(shape)}, such as a .npy file"
            )
        image = read_image(path, shape[0])
        if tuple(image.shape) != shape:
            raise DataError(
                f"{str(path)!r}: holds {_sizes(image.shape)}, and {what} is to be {_sizes(shape)}"
            )
        return image
    array, way = _chosen(path, stored_arrays(path), key, shape, what)
    order, final = way
    values = _floats(array.read(), path)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(order)).reshape(final))


def _chosen(
    path: Path, arrays: dict[str, StoredArray], key: str | None, shape: Shape, what: str
) -> tuple[StoredArray, _Way]:
    where, matlab = repr(str(path)), path.suffix.lower() == ".mat"
    told = in_words({name: array.variable for name, array in arrays.items()})
    if key is not None and "" not in arrays:  # .npy files have no names
        if key not in arrays:
            raise DataError(
                f"{where} has no array {shown(key)}, but {told}; give FILE:NAME with one of these"
            )
        arrays = {key: arrays[key]}
    fitting = [
        (array, way) for array in arrays.values() if (way := _way(array.shape, shape, matlab)) is not None
    ]
    if not fitting:
        raise DataError(f"{where}: holds {told}, and {what} is to be {_sizes(shape)}")
    if len(fitting) > 1:
        raise DataError(
            f"{where}: holds {told}, of which several fit {what}; give FILE:NAME with one of these"
        )
    return fitting[0]


def _way(found: Shape, wanted: Shape, matlab: bool) -> _Way | None:
    """How an array becomes one of the wanted shape, if it can."""
    plain = tuple(range(len(found)))
    ways = [(plain, found)]
    if len(found) == 3 == len(wanted):
        last = ((2, 0, 1), (found[2], found[0], found[1]))
        ways = [last, *ways] if matlab else [*ways, last]
    for order, turned in ways:
        if turned == wanted:
            return order, wanted
    # A map of one channel without that axis, a batch of one, a number or row of numbers as MATLAB has it.
    more = found[1:] == wanted and found[:1] == (1,)
    bare = len(wanted) == 3 and (1, *found) == wanted
    row = len(wanted) < 2 and _long(found) == _long(wanted)
    return (plain, wanted) if more or bare or row else None


def _long(shape: Shape) -> Shape:
    """Without axes of one."""
    return tuple(size for size in shape if size != 1)


def _floats(array: npt.NDArray[np.generic], path: Path) -> npt.NDArray[np.float32]:
    """The numbers as they are, in float32; booleans are 0 and 1."""
    if array.dtype.kind not in "fiub":
        raise DataError(f"{str(path)!r} holds numbers of type {array.dtype}; store floats or integers")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is told as such
        values = np.array(array, np.float32, order="C")
    if not np.isfinite(values).all():
        raise DataError(f"{str(path)!r}: holds values that are not finite")
    return values


def _sizes(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"
