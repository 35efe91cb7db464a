"""Progress bars and remarks, on standard error."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this is the one that talks and writes, of several that a launcher may have started."""
    return os.environ.get("RANK", "0") == "0"


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
        "disable": not is_first_process(),
        "file": sys.stderr,
        "dynamic_ncols": terminal,
        "mininterval": 0.2 if terminal else 30.0,
        "leave": False,
    }


def say(message: str) -> None:
    """Tell the user something, without tearing a progress bar apart."""
    if is_first_process():
        tqdm.write(message, file=sys.stderr)
