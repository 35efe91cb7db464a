"""Figures as they are written in the page."""

from __future__ import annotations

import math
from collections.abc import Iterable

MINUS, TIMES, UNKNOWN = "\u2212", "\u00d7", "\u2013"


def finite(value: object) -> float | None:
    """The number; None for what is not known, and for infinities."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def known(values: Iterable[object]) -> list[float]:
    """Those of the values that are finite numbers."""
    return [number for number in map(finite, values) if number is not None]


def fixed(value: object, digits: int, unit: str = "") -> str:
    """With so many decimals; "∞" for infinity, an en dash for what is not known."""
    number = finite(value)
    if number is not None:
        return f"{number:.{digits}f}{unit}".replace("-", MINUS)
    return f"∞{unit}" if value == math.inf else UNKNOWN


def signed(value: object, digits: int, unit: str = "") -> str:
    """As :func:`fixed` with a sign, but none for what is rounded to zero."""
    number = finite(value)
    if number is None or round(number, digits) == 0:
        return fixed(0.0 if number is not None else value, digits, unit)
    return f"{number:+.{digits}f}{unit}".replace("-", MINUS)


def percent_change(before: float, after: float) -> str:
    """By how much a figure became smaller or larger: "−23 %", "+4.1 %"."""
    if not before:
        return UNKNOWN
    change = 100 * (after / before - 1)
    digits = 0 if abs(change) >= 10 else 1
    return signed(change, digits) + " %"


def short(value: float | None) -> str:
    """A few significant digits: a tick of an axis, an error; an en dash for what is not known."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if value and not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", MINUS)
    return f"{value:.4g}".replace("-", MINUS)
