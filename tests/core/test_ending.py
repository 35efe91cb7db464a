"""However a command ends, it says why in one line."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
import torch

from csa2glmha import cli
from csa2glmha.core.ending import run_safely
from csa2glmha.core.errors import OutputError, UsageError
from csa2glmha.core.progress import manual_progress, say


def interrupted_in_c() -> NoReturn:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt as error:
        raise SystemError("<method> returned a result with an exception set") from error


def for_ever(n: int = 0) -> int:
    return for_ever(n + 1) + 1


def raising(error: BaseException) -> Any:
    def command() -> NoReturn:
        raise error

    return command


@pytest.mark.parametrize(
    ("command", "code", "line"),
    [
        (raising(UsageError("--rank 0: no")), 2, "--rank 0: no"),
        (raising(OutputError("cannot write")), 1, "cannot write"),
        (raising(click.UsageError("No such option")), 2, "No such option"),
        (raising(click.exceptions.Abort()), 130, "interrupted; nothing half-written was left behind"),
        (raising(KeyboardInterrupt()), 130, "interrupted; nothing half-written was left behind"),
        (interrupted_in_c, 130, "interrupted; nothing half-written was left behind"),
        (raising(MemoryError()), 1, "out of memory; use smaller"),
        (raising(torch.OutOfMemoryError("CUDA out of memory. Tried")), 1, "out of memory; use smaller"),
        (raising(RuntimeError("std::bad_alloc")), 1, "out of memory; use smaller"),
        (raising(RuntimeError("DefaultCPUAllocator: not enough memory: you tried")), 1, "out of memory; use"),
        (for_ever, 1, "unexpected RecursionError: something is nested too deeply"),
        (raising(SystemExit("a library gave up")), 1, "a library gave up"),
        (raising(ZeroDivisionError("a\nb\x1b[2J")), 1, "unexpected ZeroDivisionError: a b\ufffd[2J; this"),
        (raising(ValueError("x" * 10_000)), 1, "unexpected ValueError: xxx"),
        (raising(FileNotFoundError(2, "No such file", "a\nb")), 1, "a b: No such file"),
        (raising(OSError(errno.ENOSPC, "No space left on device")), 1, "cannot write what is to be printed"),
        (lambda: Path("n" * 510).stat(), 1, "n: File name too long"),
        (lambda: "\ud800".encode(), 1, "unexpected UnicodeEncodeError: "),
    ],
)
def test_every_end_is_one_line(
    command: Any, code: int, line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CSA2GLMHA_DEBUG", raising=False)
    assert run_safely(command) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("csa2glmha: ") and err.count("\n") == 1
    assert line in err and len(err) < 700


def test_ends_without_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_safely(lambda: None) == 0
    assert run_safely(lambda: 3) == 3
    assert run_safely(raising(SystemExit(4))) == 4
    assert run_safely(raising(BrokenPipeError())) == 0
    assert capsys.readouterr() == ("", "")


def test_the_traceback_is_there_on_demand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSA2GLMHA_DEBUG", "1")
    assert run_safely(raising(ZeroDivisionError("no"))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1].startswith("csa2glmha: unexpected ZeroDivisionError")


def test_the_place_in_the_package_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_safely(lambda: say(5)) == 1
    assert "(in csa2glmha/core/text.py, line " in capsys.readouterr().err


class Full(io.StringIO):
    """A stream on a full disk."""

    number = errno.ENOSPC

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def test_a_full_log_does_not_end_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    say("going on")
    with manual_progress(what="steps", unit="step", total=2) as bar:
        bar.update()
        bar.refresh()
        say("still going on")
    monkeypatch.setattr(sys, "stderr", None)
    say("nobody listens")


def test_output_onto_a_full_disk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    assert run_safely(lambda: cli.show("result")) == 1
    err = capsys.readouterr().err
    assert err == "csa2glmha: cannot write what is to be printed: No space left on device\n"


def test_names_that_the_encoding_does_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="latin-1"))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii", write_through=True))

    def command() -> None:
        say("Größe")
        cli.show("Größe 日 \udcff")

    assert run_safely(command) == 0
    assert raw.getvalue() == b"Gr\\xf6\\xdfe\nGr\xf6\xdfe \\u65e5 \\ufffd\n"


def test_a_reader_that_is_gone_is_no_failure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `csa2glmha --version | true`; Click would exit with 1."""
    stream = Full()
    stream.number = errno.EPIPE
    for name in ("stdout", "stderr"):  # Click replaces both
        monkeypatch.setattr(sys, name, stream if name == "stdout" else sys.stderr)
    assert run_safely(lambda: cli.cli.main(["--version"], standalone_mode=False)) == 0
    assert capsys.readouterr().err == ""
