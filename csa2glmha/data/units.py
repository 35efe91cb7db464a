"""What the numbers of cubes and measurements mean: fractions of white, counts of a camera, or sums of bands.

Files do not say. What can be told from the numbers is told by all files of a folder together, so that they
stay comparable, and the user reads what was taken for white. What cannot is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from csa2glmha.core.errors import DataError

#: Bits of a sample that cameras and files have.
DEPTHS = (8, 10, 12, 14, 16)
#: Fractions of white above this are said, since few scenes have such highlights ...
BRIGHT = 1.5
#: ... and numbers with a fraction above this, or below minus one, are in units that nobody knows.
UNKNOWN_ABOVE, UNKNOWN_BELOW = 10.0, -1.0
#: Noise around black is below zero; more than this, and more than half the largest value, is no light.
_NOISE = 0.1


@dataclass(frozen=True)
class Extent:
    """The values of one array.

    Attributes:
        low, high: the smallest and the largest.
        whole: all are whole numbers.
        bits: of the unsigned integers that the file stores; None: it stores floats.
    """

    low: float
    high: float
    whole: bool
    bits: int | None = None

    @classmethod
    def of(cls, values: npt.NDArray[np.float32], bits: int | None = None) -> Extent:
        """Measure finite values, a part of them at a time: cubes may be large."""
        low, high = float(values.min()), float(values.max())
        whole = all(bool((part == np.rint(part)).all()) for part in values)
        return cls(low, high, whole, bits)


@dataclass(frozen=True)
class White:
    """The stored value that stands for white, and what the user should know of it."""

    value: float = 1.0
    notes: tuple[str, ...] = ()


def depth_of(high: float) -> int | None:
    """The smallest usual number of bits that holds counts up to ``high``; None: no such number."""
    return next((bits for bits in DEPTHS if high < 2**bits), None)


def refuse_negative(path: Path, extent: Extent) -> None:
    """Raise DataError for values that no light has, such as those of centred or standardised data."""
    if extent.low < -max(_NOISE, extent.high / 2):
        raise DataError(
            f"{str(path)!r} holds values from {extent.low:g} to {extent.high:g}, but light is not negative; "
            "store values that are zero where it is dark"
        )


def refuse_blank(path: Path, extent: Extent) -> None:
    """Raise DataError for an array of one value throughout: there is nothing to learn or to compare."""
    if extent.low == extent.high:
        raise DataError(f"{str(path)!r} holds the value {extent.low:g} only; no scene is there")


def refuse_unknown(path: Path, extent: Extent) -> None:
    """Raise DataError for a cube whose numbers are neither fractions of white nor counts."""
    refuse_negative(path, extent)
    counts = extent.whole and 1 < extent.high < 2 ** DEPTHS[-1]
    if not counts and (extent.high > UNKNOWN_ABOVE or extent.low < UNKNOWN_BELOW):
        raise DataError(
            f"{str(path)!r} holds values from {extent.low:g} to {extent.high:g}, neither fractions of white "
            f"nor counts of up to {DEPTHS[-1]} bits; store reflectances, 1 for white"
        )


def white_of_cubes(extents: Mapping[Path, Extent]) -> White:
    """The value that floats of all these cubes have where there is white: 1, or the largest count.

    Whole numbers beyond 1 are counts, and the number of bits follows from the largest of them in all files.
    Integers are left out: their type says it, and they are fractions already.

    Raises:
        DataError: counts and fractions side by side.
    """
    floats = {path: extent for path, extent in extents.items() if extent.bits is None}
    counts = [path for path, extent in floats.items() if extent.whole and extent.high > 1]
    if not counts:
        return White(1.0, _bright(floats) + _dim(extents))
    fractions = [path for path, extent in floats.items() if not extent.whole]
    if fractions:
        raise DataError(
            f"{str(counts[0])!r} holds counts up to {floats[counts[0]].high:g}, {str(fractions[0])!r} holds "
            "fractions: store all cubes as fractions of white"
        )
    return counted(floats)


def counted(extents: Mapping[Path, Extent]) -> White:
    """The largest count of as many bits as these files need together; all below 2 to the 16."""
    high = max(extent.high for extent in extents.values())
    bits = depth_of(high) or DEPTHS[-1]
    white = 2**bits - 1
    return White(
        float(white),
        (
            f"{file_names(list(extents))}: whole numbers up to {high:g}, taken as counts of {bits} bits and "
            f"divided by {white}",
        ),
    )


def _bright(floats: Mapping[Path, Extent]) -> tuple[str, ...]:
    beyond = [path for path, extent in floats.items() if extent.high > BRIGHT]
    if not beyond:
        return ()
    high = max(floats[path].high for path in beyond)
    return (f"{file_names(beyond)}: values up to {high:g}, beyond 1 for white; taken as stored",)


def _dim(extents: Mapping[Path, Extent]) -> tuple[str, ...]:
    """Cameras of fewer bits than their files leave values that are right only if somebody has scaled them."""
    deep = {path: extent for path, extent in extents.items() if extent.bits == 16}
    if not deep:
        return ()
    high = max(extent.high for extent in deep.values()) * (2**16 - 1)
    bits = depth_of(round(high))
    if bits == 16 or high == 0:
        return ()
    return (
        f"{file_names(list(deep))}: 16-bit integers up to {high:.0f} only, divided by 65535 all the same; if "
        f"they are counts of {bits} bits, store them as floats",
    )


def file_names(paths: list[Path]) -> str:
    """The first of some files, and how many more there are."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0].name}{more}"
