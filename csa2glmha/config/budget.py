"""What a rank search must keep to, as a user writes it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from csa2glmha.core.errors import UsageError
from csa2glmha.core.text import shortened

MACS, PARAMS, LATENCY, MAX_DROP = "macs", "params", "latency", "max_drop"

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Budget:
    """One limit.

    Attributes:
        kind: MACS, PARAMS, LATENCY or MAX_DROP.
        target: a share of the teacher's; of MAX_DROP decibels; or an amount, if ``absolute``.
        absolute: the target is a number of multiply-accumulates or parameters.
    """

    kind: str
    target: float
    absolute: bool = False

    def limit(self, teacher: float) -> float:
        """The amount that this is of a teacher's."""
        return self.target if self.absolute else self.target * teacher

    def __str__(self) -> str:
        flag = "--" + self.kind.replace("_", "-")
        if not self.absolute:
            return f"{flag} {self.target:g}"
        for unit, size in reversed(_UNITS.items()):
            if self.target >= size:
                return f"{flag} {self.target / size:g}{unit.upper()}"
        return f"{flag} {self.target:g}"


def parse_amount(value: float | str, kind: str) -> Budget:
    """Read "0.75", a share of the teacher's, or "110G", an amount.

    Raises:
        UsageError: neither.
    """
    flag = f"--{kind}"
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e[+-]?\d+)?|\.\d+)\s*([kmgt]?)\s*", str(value), re.IGNORECASE)
    if match is None:
        raise UsageError(
            f"{flag} {shortened(value)}: neither a share such as 0.75 nor an amount such as 110G; give "
            "one of them"
        )
    number, unit = float(match[1]), match[2].lower()
    if not math.isfinite(number * _UNITS[unit]):
        raise UsageError(f"{flag} {shortened(value)}: too large a number; give a share such as 0.75")
    if number <= 0:
        raise UsageError(
            f"{flag} {shortened(value)}: nothing would be left; give a share such as 0.75, or an amount"
        )
    if not unit and number <= 1:
        return Budget(kind, number)
    if not unit and number < 1000:
        raise UsageError(
            f"{flag} {shortened(value)}: above 1 it is an amount, and too small for one; give a share such "
            "as 0.75, or an amount such as 110G"
        )
    return Budget(kind, number * _UNITS[unit], absolute=True)
