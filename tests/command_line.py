"""The command line, run in the process of the tests, as a user meets it."""

from __future__ import annotations

import pytest

from csa2glmha import cli


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Run a command; its exit code and what it printed on both streams."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli.main([str(each) for each in arguments])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def complaint(*arguments: object, capsys: pytest.CaptureFixture[str], code: int) -> str:
    """Run something that must fail; returns its one line."""
    actual, out, err = run(*arguments, capsys=capsys)
    assert actual == code, err
    assert out == ""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if line.startswith("csa2glmha:")]
    assert len(lines) == 1, err
    return lines[0]
