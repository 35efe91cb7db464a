"""Progress bars and remarks.

Remarks go to the logger "csa2glmha", at level INFO. The command line, :func:`csa2glmha.convert` and
:func:`csa2glmha.compress` show them on standard error while they run. Other programs see them as they see
those of any library: by handlers of their own.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from csa2glmha.core.text import one_line

T = TypeVar("T")

_LOG = logging.getLogger("csa2glmha")
_LOG.addHandler(logging.NullHandler())  # else Python prints what nobody handles


def is_first_process() -> bool:
    """Whether this is the one that talks and writes, of several that a launcher may have started."""
    return os.environ.get("RANK", "0") == "0"


def progress(items: Iterable[T], *, what: str, unit: str) -> Iterable[T]:
    """``items``, with a bar while they are gone through."""
    return tqdm(items, desc=one_line(what), unit=unit, **_style())


def manual_progress(*, what: str, unit: str, total: int | None) -> tqdm[Any]:
    """A bar to update by hand, use it in a ``with`` statement; without ``total`` it only counts."""
    return tqdm(desc=one_line(what), unit=unit, total=total, **_style())


_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextlib.contextmanager
def quiet(wanted: bool = True) -> Iterator[None]:
    """Neither bars nor remarks on standard error, if that is wanted."""
    before = _quiet.set(_quiet.get() or wanted)
    try:
        yield
    finally:
        _quiet.reset(before)


def _style() -> dict[str, Any]:
    # Where standard error is not a terminal the bar refreshes rarely, so that a log stays readable.
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return {
        "disable": _quiet.get() or not is_first_process() or sys.stderr is None,
        "file": _Talk(sys.stderr),
        "dynamic_ncols": terminal,
        "mininterval": 0.2 if terminal else 30.0,
        "leave": False,
    }


def say(message: str) -> None:
    """Tell the user something in a line."""
    _LOG.info(one_line(message), stacklevel=2)


@contextlib.contextmanager
def telling(wanted: bool = True) -> Iterator[None]:
    """Remarks are shown on standard error as long as the block lasts, if that is wanted."""
    if not wanted or any(isinstance(each, _OnStandardError) for each in _LOG.handlers):
        yield
        return
    handler, level = _OnStandardError(), _LOG.level
    _LOG.addHandler(handler)
    if not _LOG.isEnabledFor(logging.INFO):
        _LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        _LOG.removeHandler(handler)
        _LOG.setLevel(level)


class _OnStandardError(logging.Handler):
    """Shows remarks without tearing a progress bar apart."""

    def emit(self, record: logging.LogRecord) -> None:
        # The stream is asked for each time: a program may have replaced it.
        if is_first_process() and not _quiet.get() and sys.stderr is not None:
            tqdm.write(record.getMessage(), file=_Talk(sys.stderr))


class _Talk:
    """Standard error, for talk: hours of work must not end because nobody can be told how it goes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:
        # tqdm clears the bars of the stream that it writes to.
        return isinstance(other, _Talk) and self._stream is other._stream

    def __hash__(self) -> int:
        return hash(self._stream)

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):  # a full disk, a reader that is gone, a closed file
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()
