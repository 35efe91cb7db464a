"""A check of arrays in MATLAB files of version 5, before SciPy reads them.

SciPy's reader (1.17) takes the stored type of numbers from the file without a look: a damaged or hostile one
made it read beyond its tables, and the process ended without a word.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

_HEADER_BYTES = 128
#: Of a variable its type, dimensions and name fit into this many bytes: names have 63 letters at most.
_HEAD_BYTES = 4096
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15
_COMPLEX = 0x0800
#: Bytes of a number of each type that arrays are stored in.
_NUMBER_BYTES = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 6: 4, 7: 4, 9: 8, 12: 8, 13: 8}


class _Element(NamedTuple):
    """A type, how many bytes are of it, where they begin, and where the next element does."""

    kind: int
    size: int
    start: int
    end: int


def check_array(path: Path, name: str) -> None:
    """Raise ValueError unless the array of that name is stored as real numbers, as many as its shape says."""
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES)
        if 0 in header[:4]:
            return  # version 4, which has no such types
        order = "<" if header[126:128] == b"IM" else ">"
        while len(tag := file.read(8)) == 8:
            kind, size = np.frombuffer(tag, f"{order}u4").tolist()
            following = file.tell() + size
            head = file.read(min(size, _HEAD_BYTES))
            if kind == _COMPRESSED:
                head = zlib.decompressobj().decompress(head, _HEAD_BYTES)[8:]
            elif kind != _MATRIX:
                raise ValueError(f"an element of type {kind}")
            if _check(head, order, name):
                return
            file.seek(following)
    raise ValueError(f"the array {name!r} is not where it should be")


def _check(head: bytes, order: str, name: str) -> bool:
    """Whether these are the first bytes of that variable; ValueError where they are, and are not sound."""
    flags = _element(head, order, 0)
    shape = _element(head, order, flags.end)
    title = _element(head, order, shape.end)
    if (flags.kind, flags.size, shape.kind, title.kind) != (_UINT32, 8, _INT32, _INT8) or shape.size % 4:
        raise ValueError("a variable whose description is damaged")
    if head[title.start : title.start + title.size].decode("latin-1") != name:
        return False
    if np.frombuffer(head, f"{order}u4", 1, flags.start)[0] & _COMPLEX:
        raise ValueError(f"{name!r} holds complex numbers")
    numbers = _element(head, order, title.end)
    sides = np.frombuffer(head, f"{order}i4", shape.size // 4, shape.start).tolist()
    if numbers.size != math.prod(sides) * _NUMBER_BYTES.get(numbers.kind, -1):
        raise ValueError(f"{name!r} does not hold the numbers that its shape asks for")
    return True


def _element(head: bytes, order: str, offset: int) -> _Element:
    if len(head) < offset + 8:
        raise ValueError("a variable whose description is cut off")
    kind, size = np.frombuffer(head, f"{order}u4", 2, offset).tolist()
    if kind >> 16:  # at most four bytes, in the place of the size
        return _Element(kind & 0xFFFF, kind >> 16, offset + 4, offset + 8)
    return _Element(kind, size, offset + 8, offset + 8 + -(-size // 8) * 8)
