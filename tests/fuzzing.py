"""What the fuzzing tests share: inputs that were damaged or made up, and what no input may do."""

from __future__ import annotations

import faulthandler
import operator
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from _pytest.faulthandler import fault_handler_stderr_fd_key
from hypothesis import settings
from hypothesis import strategies as st

from csa2glmha.core.errors import Csa2GlmhaError

#: Inputs for every test; without it as many as a minute takes, the same ones each time.
MORE = os.environ.get("CSA2GLMHA_FUZZ")

#: An input that takes longer hangs, on the busiest machine: the process then ends and shows where.
MINUTES_OF_A_HANG = 10


def inputs(number: int) -> settings:
    """Settings of a test with so many inputs, or so many new ones as CSA2GLMHA_FUZZ says."""
    if MORE:
        return settings(max_examples=int(MORE), database=None, print_blob=True)
    return settings(max_examples=number, database=None, print_blob=True, derandomize=True)


# --- what no input may do

_STARTING = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty")
_CONNECTING = ("socket.connect", "socket.getaddrinfo", "socket.sendto")
_UNPICKLING = ("pickle.find_class", "marshal.loads")
_CHANGING = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_watching: list[list[str]] = []
_stderr = [2]


@pytest.fixture(scope="module", autouse=True)
def hangs_are_told(request: pytest.FixtureRequest) -> None:
    """Where a hang is: on the stream for crashes, since what pytest captures is lost with the process."""
    _stderr[0] = request.config.stash.get(fault_handler_stderr_fd_key, 2)


def _may_change(path: Any) -> bool:
    if isinstance(path, int) or path is None:
        return True
    where, allowed = (os.path.realpath(os.fsdecode(each)) for each in (path, tempfile.gettempdir()))
    return where in (allowed, os.devnull) or where.startswith(allowed + os.sep)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    wrong = event in _STARTING or event in _CONNECTING or event in _UNPICKLING
    if event == "marshal.loads" and any("importlib" in name for name in _callers()):
        return  # a module that is imported late
    if event == "open":
        path, mode, flags = arguments
        writing = any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & _WRITE_FLAGS
        wrong = bool(writing) and not _may_change(path) and "__pycache__" not in str(path)
    elif event in _CHANGING:
        wrong = not _may_change(arguments[0]) and "__pycache__" not in str(arguments[0])
    if wrong:
        _watching[-1].append(f"{event} {arguments!r:.300}")
        raise PermissionError(f"a test forbids {event}")


def _callers() -> Iterator[str]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back  # type: ignore[assignment]


sys.addaudithook(_audit)


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def confined(folder: Path) -> Iterator[None]:
    """Nothing in it changes a file or makes one, starts or connects to anything, runs a pickle, or hangs.

    What may be written is what lies in temporary folders that are gone at the end.
    """
    before, wrong = _content(folder), list[str]()
    faulthandler.dump_traceback_later(60 * MINUTES_OF_A_HANG, exit=True, file=_stderr[0])
    _watching.append(wrong)
    try:
        yield
    finally:
        _watching.pop()
        faulthandler.cancel_dump_traceback_later()
        assert wrong == [], wrong
        assert _content(folder) == before


def accepts_or_refuses(work: Callable[[], Any]) -> Any:
    """What it returns; None where it refuses, in words. Any other exception is a fault."""
    try:
        return work()
    except Csa2GlmhaError as error:
        assert str(error).strip()
        assert len(str(error)) < 3000
        return None


@contextmanager
def folder_with(**files: bytes) -> Iterator[Path]:
    """A new folder with these files, whose names have "_" for "."."""
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            Path(name, file.replace("_", ".")).write_bytes(data)
        yield Path(name)


# --- what is made up

#: Numbers at which programs stumble.
INTEGERS = st.one_of(
    st.integers(-2, 64),
    st.sampled_from([127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 10**30]),
    st.integers(),
)
NUMBERS = st.one_of(INTEGERS, st.floats())
WORDS = st.sampled_from(
    ["", " ", "nan", "inf", "-inf", "1e999", "0x10", "full", "auto", "none", "null", "true", "..", ".", "/",
     "\x00", "\x1b[31m", "\ud800", "a\nb", "é", "x" * 300, "1" * 5000, "-1", "0", "1_000", "\u0661"]
)  # fmt: skip
TEXT = st.one_of(WORDS, st.text(max_size=20))
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXT)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def damaged(draw: st.DrawFn, data: bytes, ends: int = 2048) -> bytes:
    """The data with a few things done to it, most of them near its ends, where formats keep what they say."""
    found = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        size = len(found)
        if not size:
            break
        near = st.integers(0, min(ends, size) - 1)
        at = draw(st.one_of(near, near.map(partial(operator.sub, size - 1)), st.integers(0, size - 1)))
        what = draw(st.sampled_from(["bit", "byte", "number", "cut", "out", "in", "twice"]))
        if what == "bit":
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "byte":
            found[at] = draw(st.integers(0, 255))
        elif what == "number":
            value = draw(st.sampled_from([0, 1, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1]))
            width = draw(st.sampled_from([2, 4, 8]))
            order = draw(st.sampled_from(["little", "big"]))
            found[at : at + width] = (value % 2 ** (8 * width)).to_bytes(width, order)
        elif what == "cut":
            del found[at:]
        elif what == "out":
            del found[at : at + draw(st.integers(1, 64))]
        elif what == "in":
            found[at:at] = draw(st.binary(min_size=1, max_size=16))
        else:
            found[at:at] = found[at : at + draw(st.integers(1, 256))]
    return bytes(found)
