"""What tests of exports share."""

from __future__ import annotations

import pytest


@pytest.fixture
def unsimplified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without onnxsim, which takes seconds in a process of its own."""
    monkeypatch.setattr("csa2glmha.export.onnx.simplify", lambda proto: proto)
