"""Errors in code of the user's own: told as theirs, with the last line of their traceback and the place."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

from csa2glmha.core.text import one_line, shortened

_PACKAGE = Path(__file__).parents[1]
_LONGEST = 400
#: Files of this package that call code of the user's.
_CALLERS: set[str] = set()


def calls_users_code(file: str) -> None:
    """Say of a file of this package (its ``__file__``) that it calls code of the user's."""
    _CALLERS.add(file)


def described(error: BaseException) -> str:
    """What its traceback ends with, and where: "ValueError: no such width (net.py, line 4)"."""
    last = traceback.format_exception_only(error)[-1].strip() or type(error).__name__
    if isinstance(error, SystemExit):
        last = f"the code ends the program ({last})"
    where = _place(error)
    return one_line(shortened(last, _LONGEST)) + (f" ({where})" if where else "")


def users_error(error: BaseException) -> str | None:
    """The same of an error that came out of the user's code; None of any other."""
    frames = traceback.extract_tb(error.__traceback__)
    called = [index for index, frame in enumerate(frames) if frame.filename in _CALLERS]
    after = frames[called[-1] + 1 :] if called else []
    return described(error) if any(_is_theirs(frame.filename) for frame in after) else None


def _place(error: BaseException) -> str:
    """File and line: those that Python cannot read, or the last of the user's that the error came through."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        return _named(error.filename, error.lineno)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_theirs(frame.filename):
            return _named(frame.filename, frame.lineno)
    return ""


def _named(file: str, line: int | None) -> str:
    path = Path(file)
    near = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    return f"{near}, line {line}" if line else str(near)


def _is_theirs(file: str) -> bool:
    """Neither of this package nor of PyTorch, nor one of Python's own that import others."""
    path = Path(file)
    if file.startswith("<") or path.is_relative_to(_PACKAGE):
        return False
    return "torch" not in path.parts[:-1] and path.parent not in (_LIBRARY, _LIBRARY / "importlib")


_LIBRARY = Path(os.__file__).parent
