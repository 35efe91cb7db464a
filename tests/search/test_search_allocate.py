"""The allocation against exhaustive search, and its bound."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from csa2glmha.search import InfeasibleError, allocate
from csa2glmha.search.allocate import PARTS

Groups = list[list[tuple[float, float]]]
numbers = st.integers(0, 1000).map(float)
groups = st.lists(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), min_size=1, max_size=5)


def exhaustive(given: Groups, budget: float) -> float | None:
    totals = [
        (sum(loss for loss, _ in picked), sum(cost for _, cost in picked))
        for picked in itertools.product(*given)
    ]
    fitting = [loss for loss, cost in totals if cost <= budget]
    return min(fitting) if fitting else None


@settings(max_examples=150)
@given(groups, st.floats(0, 1.2))
def test_against_exhaustive_search(given: Groups, share: float) -> None:
    budget = share * sum(max(cost for _, cost in group) for group in given)
    losses, costs = ([[each[i] for each in group] for group in given] for i in (0, 1))
    best = exhaustive(given, budget)
    if best is None:
        with pytest.raises(InfeasibleError) as caught:
            allocate(losses, costs, budget)
        assert caught.value.least == sum(min(group) for group in costs)
        return
    found = allocate(losses, costs, budget)
    assert found.cost <= budget
    assert found.loss == sum(group[pick] for group, pick in zip(losses, found.picks, strict=True))
    assert found.bound <= best + 1e-9 * (1 + best)
    # Only what needs the very last of the budget can be missed, by the rounding of its division.
    roomier = exhaustive(given, budget * (1 - len(given) / PARTS))
    assert best <= found.loss and (roomier is None or found.loss <= roomier)


def test_everything_fits() -> None:
    found = allocate([[5.0, 0.0], [3.0, 1.0]], [[1.0, 2.0], [1.0, 9.0]], 11.0)
    assert (found.picks, found.loss, found.cost, found.gap) == ([1, 1], 1.0, 11.0, 0.0)


def test_the_gap_is_small_for_many_groups() -> None:
    losses = [[100.0 / rank**1.5 * (1 + group % 7) for rank in range(1, 9)] for group in range(40)]
    costs = [[float(rank * (1 + group % 3)) for rank in range(1, 9)] for group in range(40)]
    found = allocate(losses, costs, 250.0)
    assert found.cost <= 250.0 and found.gap < 0.01
    uniform = sum(group[2] for group in losses)  # rank 3 everywhere costs 240
    assert found.loss < uniform
