"""All JSON that we write is JSON as the standard has it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import csa2glmha
from csa2glmha.core.strict_json import dumps, json_number, json_values, read_number
from csa2glmha.distill.log import TrainingLog


def strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_json_has_no_numbers_for() -> None:
    values = {"a": [math.nan, 0.5], "b": (math.inf, -math.inf), "c": True, "d": "inf", "e": None, "f": 3}
    expected = {"a": [None, 0.5], "b": ["inf", "-inf"], "c": True, "d": "inf", "e": None, "f": 3}
    assert json_values(values) == expected
    assert strictly(dumps(values)) == expected
    assert dumps(np.float64("nan")) == "null"


@pytest.mark.parametrize("value", [1.5, -0.0, math.inf, -math.inf])
def test_figures_are_read_as_they_were(value: float) -> None:
    assert read_number(json_number(value)) == value


@pytest.mark.parametrize("value", [None, math.nan, True, "much", [], {}])
def test_what_is_no_figure_is_not_known(value: Any) -> None:
    assert read_number(value) is None


def test_a_training_whose_loss_is_not_finite_is_logged_as_json(tmp_path: Path) -> None:
    with TrainingLog(tmp_path / "distill.jsonl") as log:
        log.write("step", step=1, loss=math.nan, psnr=math.inf)
    found = strictly((tmp_path / "distill.jsonl").read_text())
    assert (found["loss"], found["psnr"]) == (None, "inf")


def test_nothing_else_writes_json() -> None:
    folder = Path(csa2glmha.__file__).parent
    writers = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        if re.search(r"\bjson\.dumps?\(|from json import", path.read_text(encoding="utf-8"))
    }
    assert writers == {"core/strict_json.py"}
