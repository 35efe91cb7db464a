"""Progress bars and remarks, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], *, what: str, unit: str) -> Iterable[T]:
    """``items``, with a bar while they are gone through."""
    return tqdm(items, desc=what, unit=unit, **_style())


def manual_progress(*, what: str, unit: str, total: int | None) -> tqdm[Any]:
    """A bar to update by hand, use it in a ``with`` statement; without ``total`` it only counts."""
    return tqdm(desc=what, unit=unit, total=total, **_style())


def _style() -> dict[str, Any]:
    # Where standard error is not a terminal the bar refreshes rarely, so that a log stays readable.
    terminal = sys.stderr.isatty()
    return {
        "file": sys.stderr,
        "dynamic_ncols": terminal,
        "mininterval": 0.2 if terminal else 30.0,
        "leave": False,
    }


def say(message: str) -> None:
    """Tell the user something, without tearing a progress bar apart."""
    tqdm.write(message, file=sys.stderr)
