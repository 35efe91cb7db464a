from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from csa2glmha.distill.features import Features, blocks_around, difference_over_deviation
from csa2glmha.networks import run
from csa2glmha.reading.layers import attention_layers
from tests.distilling import Pair, images


def loss_of(student: nn.Module, teacher: nn.Module) -> Tensor | None:
    features = Features(student, teacher)
    with features.seen():
        for network in (teacher, student):
            run(network, (images(2, 1),))
    return features.errors(2)


def test_blocks_are_those_around_the_attention(pair: Pair) -> None:
    teacher, student = pair
    expected = [name.rpartition(".")[0] for name in attention_layers(teacher)]
    assert blocks_around(teacher, attention_layers(teacher)) == expected
    assert "encoder_level1.0" in expected
    assert blocks_around(student, ["encoder_level1.0.attn", "encoder_level1.0.ffn"]) == ["encoder_level1.0"]


def test_loss_is_that_of_the_blocks_outputs(pair: Pair) -> None:
    teacher, student = pair
    made: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for which, network in (("student", student), ("teacher", teacher)):
        for name in attention_layers(teacher):
            block = network.get_submodule(name.rpartition(".")[0])
            block.register_forward_hook(lambda _, __, output, which=which: made[which].append(output))
        run(network, (images(2, 1),))
    errors = [
        (own - theirs).flatten(1).square().mean(1).sqrt() / theirs.flatten(1).std(1)
        for own, theirs in zip(made["student"], made["teacher"], strict=True)
    ]
    found = loss_of(student, teacher)
    assert found is not None and found.shape == (2,) and float(found.detach().min()) > 1e-4
    assert torch.allclose(found, torch.stack(errors).mean(0), rtol=1e-4)


def test_an_exact_student_gets_finite_gradients(pair: Pair) -> None:
    teacher, _ = pair
    student = copy.deepcopy(teacher).requires_grad_(True)
    found = loss_of(student, teacher)
    assert found is not None and float(found.detach().max()) < 1e-6
    found.sum().backward()
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    assert gradients and all(gradient.isfinite().all() for gradient in gradients)


def test_networks_without_blocks_have_no_such_loss() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1))
    assert loss_of(network, network) is None


def test_what_is_constant_does_not_divide_by_zero() -> None:
    assert float(difference_over_deviation(torch.ones(1, 4), torch.ones(1, 4))) == pytest.approx(0, abs=1e-2)
