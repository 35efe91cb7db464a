"""Operators without values are run once for each set of shapes, and count as when they are run anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csa2glmha.metrics import remembered
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.metrics.remembered import remembered as look_up
from tests.conftest import MakeRestormer

ATEN = torch.ops.aten
META = torch.device("meta")


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> dict[Any, Any]:
    known: dict[Any, Any] = {}
    monkeypatch.setattr(remembered, "_results", known)
    return known


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def times_run(func: Any, *calls: tuple[Any, ...]) -> tuple[int, list[Any]]:
    """How often an operator is run for several calls, and what comes out."""
    count, outputs = 0, []
    for args in calls:

        def run(args: tuple[Any, ...] = args) -> tuple[Any, int]:
            nonlocal count
            count += 1
            return func(*args), 7

        output, macs = look_up(func, args, {}, run)
        assert macs == 7
        outputs.append(output)
    return count, outputs


def test_the_same_shapes_are_run_once() -> None:
    count, (first, second) = times_run(ATEN.add.Tensor, (meta(2, 3), meta(3)), (meta(2, 3), meta(3)))
    assert count == 1 and first is not second
    assert (second.shape, second.stride(), second.dtype) == (first.shape, first.stride(), first.dtype)


@pytest.mark.parametrize(
    ("func", "one", "other"),
    [
        (ATEN.add.Tensor, (meta(2, 3), meta(3)), (meta(4, 3), meta(3))),
        (ATEN.add.Tensor, (meta(2, 3), meta(3)), (meta(2, 3), meta(3, dtype=torch.float64))),
        (ATEN.add.Tensor, (meta(2, 3), meta(2, 3)), (meta(3, 2).T, meta(3, 2).T)),
        # Whole numbers stay whole unless what is added is not.
        (ATEN.add.Scalar, (meta(2, dtype=torch.int64), 1), (meta(2, dtype=torch.int64), 1.0)),
        (ATEN.sum.dim_IntList, (meta(2, 3), [0], True), (meta(2, 3), [0], False)),
        (
            ATEN.native_layer_norm.default,
            (meta(2, 3), [3], None, None, 1e-5),
            (meta(2, 4), [4], None, None, 1e-5),
        ),
    ],
)
def test_what_differs_is_run(func: Any, one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    count, outputs = times_run(func, one, other, one, other)
    assert count == 2
    for made, args in zip(outputs, (one, other, one, other), strict=True):
        expected = func(*args)
        assert type(made) is type(expected)
        pairs = [(made, expected)] if isinstance(made, Tensor) else list(zip(made, expected, strict=True))
        for each, right in pairs:
            assert (each.shape, each.stride(), each.dtype) == (right.shape, right.stride(), right.dtype)


def test_views_changes_and_values_are_always_run() -> None:
    same = meta(2, 3)
    assert times_run(ATEN.view.default, (same, [6]), (same, [6]))[0] == 2
    assert times_run(ATEN.relu_.default, (same,), (same,))[0] == 2
    real = torch.ones(2)
    count, outputs = times_run(ATEN.mul.Tensor, (real, real), (2 * real, real))
    assert count == 2 and outputs[1].tolist() == [2, 2]


def test_the_default_type_counts() -> None:
    shape = ([2, 3],)
    made = []
    for dtype in (torch.float32, torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            made.append(look_up(ATEN.zeros.default, shape, {"device": META}, new_zeros)[0])
        finally:
            torch.set_default_dtype(before)
    assert [each.dtype for each in made] == [torch.float32, torch.float64]


def new_zeros() -> tuple[Tensor, int]:
    return torch.zeros(2, 3, device=META), 0


def test_no_more_than_a_number_is_kept(
    monkeypatch: pytest.MonkeyPatch, nothing_known: dict[Any, Any]
) -> None:
    monkeypatch.setattr(remembered, "MOST", 4)
    times_run(ATEN.relu.default, *((meta(size + 1),) for size in range(20)))
    assert len(nothing_known) <= 4


def test_counts_of_a_network_are_the_same(
    make_restormer: MakeRestormer, nothing_known: dict[Any, Any]
) -> None:
    model: nn.Module = make_restormer()
    first = count_complexity(model, (1, 3, 24, 32))
    assert nothing_known
    assert count_complexity(model, (1, 3, 24, 32)) == first
    nothing_known.clear()
    assert count_complexity(model, (1, 3, 24, 32)) == first
