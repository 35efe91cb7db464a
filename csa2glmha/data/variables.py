"""An array in a file, of which the shape is known before it is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: MATLAB's classes of numbers, with the bytes of one.
NUMBER_CLASSES = {"double": 8, "single": 4, "logical": 1} | {
    f"{u}int{bits}": bits // 8 for u in ("", "u") for bits in (8, 16, 32, 64)
}


@dataclass(frozen=True)
class Variable:
    """An array of real numbers in a file.

    Attributes:
        shape: of the array.
        load: reads it.
        item_bytes: of a number as it is stored.
        ordered: the file says in which order the axes are.
    """

    shape: tuple[int, ...]
    load: Callable[[], Array]
    item_bytes: int = 8
    ordered: bool = True

    @property
    def needed_bytes(self) -> int:
        """Memory to read it and to make it float32."""
        return math.prod(self.shape) * (self.item_bytes + np.dtype(np.float32).itemsize)

    def __str__(self) -> str:
        return "x".join(map(str, self.shape))
