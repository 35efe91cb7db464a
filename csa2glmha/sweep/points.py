"""What a sweep converts to: ranks with shares of feed-forward channels, and budgets for the rank search."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from csa2glmha.config.options import ConvertOptions, make_options
from csa2glmha.core.errors import UsageError

UNIFORM, AUTO = "uniform", "auto"
FULL = "full"
_AUTO = re.compile(
    r"auto:(?:(?:macs=)?(?P<macs>[^=:]+)|params=(?P<params>[^:]+)|max-drop=(?P<drop>[^:]+))(?P<full>:ffn=full)?"
)


@dataclass(frozen=True)
class Point:
    """One conversion.

    Attributes:
        label: the rank as the user wrote it, and the share of feed-forward channels unless it is all of them.
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


def parse_points(text: str, options: dict[str, Any], ffn: str | None = None) -> list[Point]:
    """Read "4,8,full,auto:0.75,auto:max-drop=0.05" and "full,0.75".

    Args:
        text: ranks separated by commas; ``auto:SHARE`` searches for ranks and widths within a share of the
            MACs, ``auto:params=SHARE`` and ``auto:max-drop=DB`` likewise; with ``:ffn=full`` behind it for
            ranks alone.
        options: of all conversions.
        ffn: shares of the hidden channels of feed-forward networks to keep. Every rank is taken with each of
            them. A search is made once and chooses widths, too; "full" alone leaves it the ranks.

    Raises:
        UsageError: an entry is none of these, there is none, or one is there twice.
    """
    labels = _entries(text, "--ranks", "no ranks; give some such as 4,8,16,full")
    shares = [FULL] if ffn is None else _shares(ffn)
    alone = {"ffn": FULL} if ffn is not None and shares == [FULL] else {}
    points = []
    for label in labels:
        if label.startswith("auto"):
            points.append(_searched(label, options | alone))
        else:
            points += [_uniform(label, share, options) for share in shares]
    if shares != [FULL] and all(point.kind == AUTO for point in points):
        raise UsageError(f"--ffn {ffn}: is for ranks that are given, and there is none; leave it out")
    return points


def _entries(text: str, flag: str, missing: str) -> list[str]:
    """What stands between commas."""
    labels = [label.strip().lower() for label in text.split(",") if label.strip()]
    if not labels:
        raise UsageError(f"{flag} {text!r}: {missing}")
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"{flag} {text}: {label} is there twice")
    return labels


def _shares(text: str) -> list[str]:
    """Of hidden channels, written alike where they are alike: ".75" is "0.75", "1" is "full"."""
    found: list[str] = []
    for entry in _entries(text, "--ffn", "no shares; give some such as full,0.75,0.5"):
        share = make_options(ffn=entry).ffn_share
        found.append(FULL if share == 1 else f"{share:g}")
        if found.count(found[-1]) > 1:
            raise UsageError(f"--ffn {text}: {found[-1]} is there twice")
    return found


def _uniform(rank: str, ffn: str, options: dict[str, Any]) -> Point:
    if ffn == FULL:
        return Point(rank, UNIFORM, make_options(**options, rank=_number(rank)))
    return Point(f"{rank} ffn {ffn}", UNIFORM, make_options(**options, rank=_number(rank), ffn=ffn))


def _searched(label: str, options: dict[str, Any]) -> Point:
    match = _AUTO.fullmatch(label)
    if match is None:
        raise UsageError(
            f"--ranks {label}: the search takes a budget; give auto:0.75 (of the MACs), "
            "auto:params=0.9 or auto:max-drop=0.05; with :ffn=full behind it, it chooses ranks alone"
        )
    if match["full"]:
        options = options | {"ffn": FULL}
    budgets = {"macs": match["macs"], "params": match["params"], "max_drop": match["drop"]}
    ((name, value),) = ((name, value) for name, value in budgets.items() if value is not None)
    try:
        return Point(label, AUTO, make_options(**options, rank="auto", **{name: value}))
    except UsageError as error:
        # The option is convert's, which nobody gave here.
        named = f"--{name.replace('_', '-')} {value}: "
        if not str(error).startswith(named):
            raise
        raise UsageError(f"--ranks {label}: {str(error).removeprefix(named)}") from error


def _number(label: str) -> int | str:
    return int(label) if label.isdigit() else label
