"""Axes of charts: where values lie, and the round numbers that are written beside them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from csa2glmha.report.sections.numbers import short


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        label: what it measures, with its unit.
        low, high: its ends, low below high; above 0 if it is logarithmic.
        logarithmic: equal distances are equal ratios.
        ticks: values that get a line and a number; made of low and high if there are none.
        show: the text of a tick.
    """

    label: str
    low: float
    high: float
    logarithmic: bool = False
    ticks: Sequence[float] = field(default=())
    show: Callable[[float], str] = short

    def at(self, value: float) -> float:
        """Where a value lies, 0 at the low end and 1 at the high one; values beyond are moved to the ends."""
        value = min(max(value, self.low), self.high)
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def marks(self, count: int) -> list[float]:
        """About ``count`` ticks."""
        if self.ticks:
            step = max(1, math.ceil(len(self.ticks) / (2 * count)))
            return [tick for tick in self.ticks[::step] if self.low <= tick <= self.high]
        if self.logarithmic:
            return _decades(self.low, self.high, count)
        return round_steps(self.low, self.high, count)


def axis_of(
    label: str,
    values: Sequence[float],
    *,
    zero: bool = False,
    margin: float = 0.06,
    least: float = 0.0,
    logarithmic: bool = False,
) -> Axis:
    """An axis that holds the values.

    Args:
        label: as in :class:`Axis`.
        values: finite; none of them gives an axis from 0 to 1.
        zero: it begins at 0.
        margin: so much of the range is added at both ends.
        least: it spans at least this much, so that noise does not look like a finding.
        logarithmic: values of 0 and below are left out.
    """
    if logarithmic:
        positive = [value for value in values if value > 0] or [0.1, 1.0]
        low, high = min(positive), max(positive)
        widen = max((high / low) ** margin, 1.2)
        return Axis(label, low / widen, high * widen, logarithmic=True)
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if zero:
        low = min(low, 0.0)
    if high - low < max(least, 1e-12):
        middle, half = (low + high) / 2, max(least, abs(high) * 0.1, 1e-6) / 2
        low, high = (low, low + 2 * half) if zero else (middle - half, middle + half)
    extra = margin * (high - low)
    return Axis(label, low if zero and low == 0 else low - extra, high + extra)


def round_steps(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between low and high, about ``count`` of them."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _decades(low: float, high: float, count: int) -> list[float]:
    for factors in ((1, 2, 5), (1, 3), (1,)):
        marks = [
            factor * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for factor in factors
            if low <= factor * 10.0**power <= high
        ]
        if len(marks) <= 2 * count:
            return marks
    return marks[:: math.ceil(len(marks) / (2 * count))]
