"""What the report adds to a search: ranks as numbers, decibels, the curve of searched ranks, strict JSON."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from csa2glmha.report.html.search import search_section
from csa2glmha.report.quality import finite_values
from csa2glmha.report.search import complete_search

COMPLEXITY = {when: {"macs": 1000, "params": 10000} for when in ("before", "after")}


def choice(layer: str, side: str, ranks: str, error: float, saved: int, picked: bool) -> dict[str, Any]:
    figures = {"error": error, "predicted": error, "macs_saved": saved, "params_saved": 10 * saved}
    return {"layer": layer, "side": side, "ranks": ranks, **figures, "picked": picked}


def search(kind: str = "macs") -> dict[str, Any]:
    """Two layers, 1000 MACs at full rank; the second is the one to be saved in."""
    return {
        "budget": {"kind": kind, "target": 0.8, "absolute": False},
        "reached": {"macs": 980, "params": 9800},
        "predicted": {
            "error": 1e-6,
            "psnr_to_teacher": 60.0,
            "uniform": [{"rank": 2, "macs": 980, "params": 9800, "error": 1e-3, "psnr_to_teacher": 30.0}],
        },
        "agreement": {"values": {"within_layers": math.nan, "overall": 0.5}},
        "choices": [
            choice("a", "logits", "q full k full", 0.0, 0, True),
            choice("a", "logits", "q 4 k 2", 1e-3, 20, False),
            choice("b", "values", "v full", 0.0, 0, False),
            choice("b", "values", "v 2", 1e-6, 20, True),
        ],
    }


@pytest.mark.parametrize("kind", ["macs", "params", "max_drop"])
def test_searched_ranks_beside_uniform_ones(kind: str) -> None:
    found = complete_search(search(kind))
    (point,) = found["predicted"]["searched"]
    assert point == {
        "rank": 2,
        "macs": 980,
        "params": 9800,
        "error": 1e-6,
        "psnr_to_teacher": pytest.approx(60),
    }
    assert found["predicted"]["uniform"] == search()["predicted"]["uniform"]


def test_choices_have_numbers() -> None:
    full, low, _, values = complete_search(search())["choices"]
    assert (full["rank_q"], full["rank_k"], full["psnr_to_teacher"]) == (None, None, None)
    assert (low["rank_q"], low["rank_k"], low["psnr_to_teacher"]) == (4, 2, pytest.approx(30))
    assert (values["rank_q"], values["rank_v"], values["psnr_to_teacher"]) == (None, 2, pytest.approx(60))


def test_correlations_of_constant_curves_are_unknown() -> None:
    found = complete_search(search())
    assert found["agreement"] == {"values": {"within_layers": None, "overall": 0.5}}
    json.dumps(found, allow_nan=False)
    assert finite_values([1, "inf", (math.inf, -math.inf), True]) == [1, "inf", [None, None], True]


def test_a_report_of_an_earlier_version_has_a_page() -> None:
    """It lacks what :func:`complete_search` adds; a sweep sets the page of such a point anew."""
    found = complete_search(search())
    assert "Sensitivity of every layer" in str(search_section({"search": found, "complexity": COMPLEXITY}))
    for each in found["choices"]:
        del each["psnr_to_teacher"]
    page = str(search_section({"search": found, "complexity": COMPLEXITY}))
    assert "Sensitivity of every layer" not in page and "rank" in page
