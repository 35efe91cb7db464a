from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from csa2glmha.distill.optimizer import MUON, RMS, Muon, is_matrix, make_optimizer, orthogonalised


@pytest.mark.parametrize(("rows", "columns"), [(12, 40), (40, 12), (16, 16)])
def test_singular_values_become_one_and_their_vectors_stay(rows: int, columns: int) -> None:
    least = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, least, generator=torch.manual_seed(0)))[0]
    right = torch.linalg.qr(torch.randn(columns, least))[0]
    matrix = left @ torch.diag(torch.logspace(-1.5, 1, least)) @ right.mT
    found = orthogonalised(torch.stack([matrix, -3 * matrix]))
    values = left.mT @ found[0] @ right
    assert values.diag().min() > 0.6 and values.diag().max() < 1.3
    assert torch.allclose(values, torch.diag(values.diag()), atol=1e-4)
    assert torch.allclose(found[1], -found[0], atol=1e-4)


def test_no_gradient_no_step() -> None:
    assert torch.equal(orthogonalised(torch.zeros(1, 10, 12)), torch.zeros(1, 10, 12))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((24, 64, 1, 1), True),
        ((24, 3, 3, 3), True),  # over all input channels: 24 x 27
        ((30, 20), True),
        ((24, 1, 3, 3), False),  # a depthwise convolution
        ((8, 64, 1, 1), False),
        ((64, 8, 1, 1), False),
        ((4, 1, 1), False),  # a temperature
        ((64,), False),
    ],
)
def test_what_is_a_matrix(shape: tuple[int, ...], expected: bool) -> None:
    assert is_matrix(torch.zeros(shape)) is expected


def test_what_is_no_matrix_is_left_to_adam() -> None:
    own, theirs = (nn.ParameterList([torch.ones(5), torch.ones(6, 1, 3, 3)]) for _ in range(2))
    muon, adam = Muon(list(own), 1e-2), make_optimizer("adam", list(theirs), 1e-2)
    for step in range(4):
        for parameter, other in zip(own, theirs, strict=True):
            gradient = torch.randn(parameter.shape, generator=torch.manual_seed(step))
            parameter.grad, other.grad = gradient, gradient.clone()
        muon.step()
        adam.step()
    for parameter, other in zip(own, theirs, strict=True):
        assert torch.allclose(parameter, other, atol=1e-7)


def test_the_length_of_a_step_is_its_rate_whatever_the_gradient() -> None:
    for scale in (1e-6, 1.0):
        weight = nn.Parameter(torch.zeros(20, 50, 1, 1))
        weight.grad = scale * torch.randn(weight.shape, generator=torch.manual_seed(1))
        Muon([weight], 1e-3).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(RMS * 1e-3, rel=0.25)


def loss_of(weights: list[nn.Parameter], inputs: Tensor) -> Tensor:
    first, second = weights
    return ((inputs @ first.mT).relu() @ second.mT).square().mean()


def test_a_state_that_was_kept_goes_on_the_same() -> None:
    def started() -> list[nn.Parameter]:
        torch.manual_seed(2)
        return [nn.Parameter(torch.randn(16, 12)), nn.Parameter(torch.randn(9, 16))]

    def steps(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer, count: int) -> None:
        for number in range(count):
            optimizer.zero_grad()
            loss_of(weights, torch.randn(30, 12, generator=torch.manual_seed(number))).backward()
            optimizer.step()

    weights = started()
    optimizer = make_optimizer(MUON, weights, 1e-2)
    before = loss_of(weights, torch.ones(1, 12)).item()
    steps(weights, optimizer, 5)
    other = [nn.Parameter(weight.detach().clone()) for weight in weights]
    resumed = make_optimizer(MUON, other, 1e-2)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(weights, optimizer, 3)
    steps(other, resumed, 3)
    assert all(torch.equal(weight, same) for weight, same in zip(weights, other, strict=True))
    assert loss_of(weights, torch.ones(1, 12)).item() < before
