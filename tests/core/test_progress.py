from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from csa2glmha.core.progress import quiet, say, telling

LOG = logging.getLogger("csa2glmha")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logger as programs that import the package have it."""
    monkeypatch.setattr(LOG, "handlers", [each for each in LOG.handlers if type(each) is logging.NullHandler])
    LOG.setLevel(logging.NOTSET)  # the fixture of all tests sets it back


def test_a_program_that_asked_for_nothing_sees_nothing() -> None:
    code = "import csa2glmha.core.progress as p, logging; p.say('a'); print(logging.root.handlers)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_program_that_logs_sees_remarks_its_way() -> None:
    code = (
        "import csa2glmha.core.progress as p, logging\n"
        "logging.basicConfig(level='INFO', format='%(levelname)s %(name)s %(funcName)s: %(message)s')\n"
        "def speak(): p.say('50 %d\\nof it')\n"
        "with p.quiet(): speak()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "INFO csa2glmha speak: 50 %d of it\n"


def test_remarks_are_shown_once_and_the_logger_is_left_as_it_was(
    library: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before, level = list(LOG.handlers), LOG.level
    with telling(False):
        say("not wanted")
    with telling():
        with telling():
            say("once")
        say("still")
        with quiet():
            say("not this")
    say("not this either")
    assert capsys.readouterr().err == "once\nstill\n"
    assert (LOG.handlers, LOG.level) == (before, level)
