"""How a command ends: with an exit code, and one line that says why, whatever happened."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from csa2glmha.core.errors import Csa2GlmhaError, InterruptedRunError, UsageError
from csa2glmha.core.progress import is_first_process
from csa2glmha.core.text import one_line, shortened

#: Set to 1, errors show where in the code they happened.
DEBUG = "CSA2GLMHA_DEBUG"

_INTERRUPTED = "interrupted; nothing half-written was left behind"
_OUT_OF_MEMORY = "out of memory; use smaller --batch, --crop, --calibration-size or --tile"
#: What libraries say that have no exception of their own for it.
_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",  # PyTorch on Windows
    "insufficient memory",
    "bad alloc",
    "bad_alloc",
)
_PACKAGE = Path(__file__).parents[1]
_LONGEST_REASON = 300


def run_safely(command: Callable[[], object]) -> int:
    """Run a command; errors become one line on standard error.

    Args:
        command: returns an exit code, or anything that is none for success.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        # Names of files and of layers may hold what the terminal's encoding does not.
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    stdout = sys.stdout
    try:
        code = command()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk can still be told
        return code if isinstance(code, int) else 0
    except BaseException as error:
        if os.environ.get(DEBUG, "0") not in ("", "0"):
            with contextlib.suppress(OSError, ValueError):
                traceback.print_exc()
        # Click exits with 1, and leaves streams behind that are silent, where a reader is gone.
        if isinstance(error, SystemExit) and sys.stdout is not stdout:
            error = BrokenPipeError()
        return _end(error)


def _end(error: BaseException) -> int:
    """Tell what ended the command; returns the exit code."""
    if isinstance(error, BrokenPipeError):
        _leave_stdout()  # its reader is gone (`| head`)
        return 0
    if isinstance(error, click.UsageError):
        hint = f" (see {error.ctx.command_path} --help)" if error.ctx is not None else ""
        return _fail(error.format_message() + hint, error.exit_code)
    if isinstance(error, click.ClickException):
        return _fail(error.format_message(), error.exit_code)
    if isinstance(error, Csa2GlmhaError):
        return _fail(str(error), error.exit_code)
    if isinstance(error, SystemExit):  # of a library
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        return _fail(str(error.code), 1)
    causes = list(_causes(error))
    # Code in C may turn an interrupt into an error of its own.
    if any(isinstance(each, (KeyboardInterrupt, click.exceptions.Abort)) for each in causes):
        return _fail(_INTERRUPTED, 130)
    if any(map(_is_lack_of_memory, causes)):
        return _fail(_OUT_OF_MEMORY, 1)
    if isinstance(error, OSError) and error.strerror:
        return _fail(_system_error(error), 1)
    reason = shortened(one_line(str(error)), _LONGEST_REASON)
    if isinstance(error, RecursionError):
        reason = f"something is nested too deeply ({reason})"
    where = _where(error)
    return _fail(
        f"unexpected {type(error).__name__}: {reason}{f' (in {where})' if where else ''}; this should not "
        f"happen, {DEBUG}=1 shows how it came about",
        1,
    )


def _system_error(error: OSError) -> str:
    if error.filename is None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _leave_stdout()
            return f"cannot write what is to be printed: {error.strerror}"
        return f"{error.strerror} (in {_where(error)})"
    named = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' and '.join(named)}: {error.strerror}"


def _leave_stdout() -> None:
    """Keep Python from complaining at exit about what it cannot write."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int) -> int:
    # Of several processes all see a wrong option or an interrupt; other failures may be those of one.
    if is_first_process() or code not in (UsageError.exit_code, InterruptedRunError.exit_code):
        with contextlib.suppress(OSError, ValueError):
            click.echo(f"csa2glmha: {one_line(message)}", err=True)
    return code


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The exception, what it was raised from, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_lack_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, Exception) and any(words in text for words in _MEMORY_WORDS)


def _where(error: BaseException) -> str:
    """The line of this package that the error went through last."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_relative_to(_PACKAGE) and path != Path(__file__):
            return f"{path.relative_to(_PACKAGE.parent)}, line {frame.lineno}"
    return ""
