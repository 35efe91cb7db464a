"""Optimal brain surgeon against sums written out, and against trying all channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from csa2glmha.feedforward.choose import refitted, removal_order


def _problem(n: int = 9, out: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n)
    mixing = torch.randn(n, n, generator=generator, dtype=torch.float64)
    hidden = mixing @ torch.randn(n, 400, generator=generator, dtype=torch.float64)
    hidden[1] = 2 * hidden[0] + 0.01 * hidden[1]  # nearly redundant
    root = torch.randn(out, out, generator=generator, dtype=torch.float64)
    return hidden, torch.randn(out, n, generator=generator, dtype=torch.float64), root @ root.T


def _lost(hidden: Tensor, weight: Tensor, kept: Tensor, metric: Tensor) -> float:
    """By least squares on the hidden channels themselves."""
    whole = weight @ hidden
    left = whole - refitted(hidden @ hidden.T, weight, kept) @ hidden[kept]
    return float((left * (metric @ left)).sum() / (whole * (metric @ whole)).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_errors_are_those_of_least_squares_at_every_width(weighted: bool) -> None:
    hidden, weight, metric = _problem()
    metric = metric if weighted else torch.eye(len(weight), dtype=torch.float64)
    found = removal_order(hidden @ hidden.T, weight, metric if weighted else None)
    for width in range(1, 9):
        expected = _lost(hidden, weight, found.kept(width), metric)
        assert found.error(width) == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert found.error(9) == 0
    assert found.errors[-1] == pytest.approx(1, rel=1e-6)


def test_the_first_to_go_costs_least_of_all() -> None:
    hidden, weight, _ = _problem()
    found = removal_order(hidden @ hidden.T, weight)
    plain = torch.eye(len(weight), dtype=torch.float64)
    costs = [
        _lost(hidden, weight, torch.tensor([j for j in range(9) if j != gone]), plain) for gone in range(9)
    ]
    assert min(range(9), key=costs.__getitem__) == int(found.order[0])
    assert int(found.order[0]) in (0, 1)  # one of the two that are nearly the same


def test_metric_decides_what_counts() -> None:
    moment, weight = torch.eye(2), torch.eye(2)
    assert removal_order(moment, weight, torch.diag(torch.tensor([1.0, 5.0]))).order.tolist() == [0, 1]
    assert removal_order(moment, weight, torch.diag(torch.tensor([5.0, 1.0]))).order.tolist() == [1, 0]


def test_silent_channels_go_first_without_error() -> None:
    hidden, weight, _ = _problem()
    hidden[4] = 0
    found = removal_order(hidden @ hidden.T, weight)
    assert int(found.order[0]) == 4
    assert found.error(8) < 1e-5


def test_moments_that_rounding_made_slightly_negative_are_repaired() -> None:
    """Fewer pixels than channels, summed in float32: half of the eigenvalues are noise of either sign."""
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(40, 18, generator=generator)
    noise = 1e-5 * torch.randn(40, 40, generator=generator)
    moment = (hidden @ hidden.T).double() + noise + noise.T
    weight = torch.randn(6, 40, generator=generator)
    assert torch.linalg.eigvalsh(moment)[0] < 0
    found = removal_order(moment, weight)
    assert sorted(found.order.tolist()) == list(range(40))
    assert bool(torch.isfinite(found.errors).all()) and found.error(20) < 1e-2 < found.error(10)
    assert float(found.errors[-1]) == pytest.approx(1.0, abs=1e-3)
