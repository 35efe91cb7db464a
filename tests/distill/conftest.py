"""The teacher and student that the tests of distillation share."""

from __future__ import annotations

import copy

import pytest

from tests.conftest import MakeRestormer
from tests.distilling import Pair, make_pair


@pytest.fixture(scope="session")
def originals(make_restormer: MakeRestormer) -> Pair:
    """A teacher and its student; no test may train these."""
    return make_pair(make_restormer)


@pytest.fixture
def pair(originals: Pair) -> Pair:
    """Copies of them, to be trained."""
    return copy.deepcopy(originals)
