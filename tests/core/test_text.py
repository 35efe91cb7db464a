from __future__ import annotations

import pytest

from csa2glmha.core.progress import manual_progress, progress, say
from csa2glmha.core.text import one_line, shortened, writable
from csa2glmha.report.document import render_table

#: Colours, a cleared screen, a title; a bell; the direction of writing; an undecodable byte; ends of lines.
HOSTILE = "a\x1b[31mb\x1b]0;title\x07c\x9bd\u202egnp.exe\u2066e\udcfff\rg\u2028h\x85i"
CLEAN = "a\ufffd[31mb\ufffd]0;title\ufffdc\ufffdd\ufffdgnp.exe\ufffde\ufffdf\ufffdg\ufffdh\ufffdi"


def test_what_would_command_a_terminal_is_replaced() -> None:
    assert writable(HOSTILE) == CLEAN
    assert writable("Größe\t日本 \U0001f600\n") == "Größe\t日本 \U0001f600\n"
    CLEAN.encode("utf-8")


def test_a_line_stays_one() -> None:
    assert one_line(f"skipped {HOSTILE}\ncsa2glmha: done") == f"skipped {CLEAN} csa2glmha: done"
    assert render_table([["a\nb", "1"]], ["n\x1b", "v"]).splitlines()[2] == "a b  1"


def test_talk_is_clean(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"skipped {HOSTILE}\nnot a message of its own")
    assert capsys.readouterr().err == f"skipped {CLEAN} not a message of its own\n"
    with manual_progress(what=HOSTILE, unit="tile", total=1) as bar:
        bar.refresh()
    list(progress([1], what=HOSTILE, unit="file"))
    shown = capsys.readouterr().err
    assert CLEAN in shown and "\x1b[31m" not in shown and "\u202e" not in shown


def test_values_of_any_length_fit_a_message() -> None:
    assert shortened("x" * 100) == "x" * 77 + "..."
    assert shortened(8) == "8"
    assert shortened(16**5000) == "a number of thousands of digits"
