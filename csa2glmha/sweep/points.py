"""What a sweep converts to: ranks, and budgets for the rank search."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from csa2glmha.config.options import ConvertOptions, make_options
from csa2glmha.core.errors import UsageError

UNIFORM, AUTO = "uniform", "auto"
_AUTO = re.compile(r"auto(?::(?:macs=)?(?P<macs>[^=]+)|:params=(?P<params>.+)|:max-drop=(?P<drop>.+))", re.I)


@dataclass(frozen=True)
class Point:
    """One conversion.

    Attributes:
        label: as the user wrote it.
        kind: UNIFORM, one rank for all layers, or AUTO, ranks that were searched for.
        options: of the conversion.
    """

    label: str
    kind: str
    options: ConvertOptions

    @property
    def folder(self) -> str:
        """Name of the folder its results go to."""
        return "rank-" + re.sub(r"[^A-Za-z0-9.]+", "-", self.label)


def parse_points(text: str, options: dict[str, Any]) -> list[Point]:
    """Read "4,8,full,auto:0.75,auto:max-drop=0.05".

    Args:
        text: ranks separated by commas; ``auto:SHARE`` searches for ranks within a share of the MACs, and
            ``auto:params=SHARE`` and ``auto:max-drop=DB`` likewise.
        options: of all conversions.

    Raises:
        UsageError: an entry is none of these, there is none, or one is there twice.
    """
    labels = [label.strip().lower() for label in text.split(",") if label.strip()]
    if not labels:
        raise UsageError(f"--ranks {text!r}: no ranks; give some such as 4,8,16,full")
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--ranks {text}: {label} is there twice")
    return [_point(label, options) for label in labels]


def _point(label: str, options: dict[str, Any]) -> Point:
    match = _AUTO.fullmatch(label)
    if match is None:
        if label.startswith("auto"):
            raise UsageError(
                f"--ranks {label}: the search takes a budget; give auto:0.75 (of the MACs), "
                "auto:params=0.9 or auto:max-drop=0.05"
            )
        return Point(label, UNIFORM, make_options(**options, rank=_number(label)))
    if match["drop"] is not None:
        return Point(label, AUTO, make_options(**options, rank="auto", max_drop=match["drop"]))
    kind = "macs" if match["macs"] is not None else "params"
    return Point(label, AUTO, make_options(**options, rank="auto", **{kind: match[kind]}))


def _number(label: str) -> int | str:
    return int(label) if label.isdigit() else label
