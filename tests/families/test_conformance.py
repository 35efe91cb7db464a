"""Every family does what a family must."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import conformance
from tests.conformance import CHECKS, Check
from tests.subjects import SUBJECTS, family_names, subject_of

pytestmark = pytest.mark.usefixtures("quick_factors")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("family", family_names())
def test_family(family: str, check: Check, tmp_path: Path) -> None:
    check(subject_of(family), tmp_path)


def test_every_subject_is_a_family() -> None:
    assert set(SUBJECTS) <= set(family_names())
    assert all(subject.name == name for name, subject in SUBJECTS.items())


def test_a_family_without_a_subject_says_what_to_add() -> None:
    with pytest.raises(AssertionError, match=r"'other': Subject\(name='other'.*in tests/subjects\.py"):
        subject_of("other")


def test_every_check_is_run() -> None:
    """A check that is written and not listed would check nothing."""
    takes = [
        value
        for value in vars(conformance).values()
        if getattr(value, "__annotations__", {}) == {"subject": "Subject", "place": "Path", "return": "None"}
    ]
    assert takes == list(CHECKS)
