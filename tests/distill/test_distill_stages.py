from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from csa2glmha.config.ranks import Ranks
from csa2glmha.data.batches import Batch
from csa2glmha.distill import distill, stages, teacher_outputs
from csa2glmha.distill.losses import LOSSES
from csa2glmha.distill.processes import Processes
from csa2glmha.families.mst.network import MST, freeze_mask_branch
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.networks import run
from csa2glmha.reading.layers import attention_layers
from tests.distilling import APPROXIMATE, Crops, Pair, images, make_held_out, settings, weights


def layer_stage(pair: Pair, **changes: Any) -> stages.LayerStage:
    teacher, student = pair
    chosen = settings(**changes)
    processes = Processes(torch.device("cpu"), chosen.precision)
    return stages.LayerStage(student, teacher, chosen, processes, list(make_held_out(teacher).inputs))


# --- losses


def test_losses() -> None:
    difference = torch.tensor([[3e-3, -1e-3], [0.0, 0.0]])
    assert float(LOSSES["l1"](difference)) == pytest.approx(1e-3)
    assert float(LOSSES["l2"](difference)) == pytest.approx(1e-5 / 4)
    # sqrt(9 + 1), sqrt(1 + 1), 1 and 1, in thousandths.
    expected = (10**0.5 + 2**0.5 + 2) / 4 * 1e-3
    assert float(LOSSES["charbonnier"](difference)) == pytest.approx(expected)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses_are_finite_at_zero(name: str) -> None:
    difference = torch.zeros(3, requires_grad=True)
    LOSSES[name](difference).backward()
    assert difference.grad is not None and difference.grad.isfinite().all()


# --- layer by layer


def test_only_approximate_layers_take_part(pair: Pair) -> None:
    teacher, student = pair
    assert tuple(stages.approximate_layers(student, teacher)) == APPROXIMATE
    stage = layer_stage(pair)
    expected = [p for name in APPROXIMATE for p in student.get_submodule(name).parameters()]
    assert {id(p) for p in stage.parameters} == {id(p) for p in expected}


def test_loss_is_that_of_layers_run_on_their_own(pair: Pair) -> None:
    """Against the layers called by hand with the teacher's activations, and autograd over all at once."""
    teacher, student = pair
    stage = layer_stage(pair, loss="l2")
    batch = Batch((images(2, 5),), None)

    kept: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        teacher.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: kept.__setitem__(name, (args[0], output))
        )
        for name in APPROXIMATE
    ]
    held_out = make_held_out(teacher).inputs
    seen: dict[str, list[Tensor]] = {name: [] for name in APPROXIMATE}
    with torch.no_grad():
        for inputs in held_out:
            run(teacher, inputs)
            for name, (_, output) in kept.items():
                seen[name].append(output)
        run(teacher, batch.inputs)
    for handle in handles:
        handle.remove()
    total = torch.zeros(())
    for name, (x, output) in kept.items():
        deviation = torch.cat(seen[name]).double().std(correction=0)
        difference = student.get_submodule(name)(x) - output
        total = total + (difference.square().mean() / float(deviation) ** 2) / 2
    total.backward()
    expected = [parameter.grad.clone() for parameter in stage.parameters if parameter.grad is not None]

    student.zero_grad(set_to_none=True)
    loss, error = stage.accumulate(batch, torch.Tensor.backward)
    assert error is None
    torch.testing.assert_close(loss, total.detach(), rtol=1e-4, atol=0)
    actual = [parameter.grad for parameter in stage.parameters if parameter.grad is not None]
    assert len(actual) == len(expected) > 10
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-6)


def test_it_repairs_what_was_broken(pair: Pair) -> None:
    teacher, student = pair
    held_out = make_held_out(teacher)
    with torch.no_grad():
        for name in APPROXIMATE:
            layer = student.get_submodule(name)
            layer.output.mul_(0.3)
    others = {name: value for name, value in weights(student).items() if not name.startswith(APPROXIMATE)}
    result = distill(
        student, teacher, Crops(), held_out, settings(steps=60, learning_rate=1e-2, stages="layers")
    )
    assert result.after > result.before + 1
    for name, value in others.items():
        assert torch.equal(student.state_dict()[name], value), name


def test_the_teacher_is_left_without_hooks(pair: Pair) -> None:
    teacher, student = pair
    distill(student, teacher, Crops(), make_held_out(teacher), settings(steps=2))
    assert not any(module._forward_hooks for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def spectral_pair() -> tuple[MST, MST]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        teacher = MST(dim=8, num_blocks=[1, 1]).eval().requires_grad_(False)
    configs = plan_layers(attention_layers(teacher), Ranks(k=2, v=2))
    student, _ = initialise_student(teacher, configs, [Cubes().batch(0, 90, 2).inputs])
    return teacher, student


class Cubes:
    """Initial cubes (count, 8, 8, 8) and one mask for all of them, (1, 8, 8, 22)."""

    def batch(self, step: int, first: int, count: int) -> Batch:
        cubes = [
            torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(number))
            for number in range(first, first + count)
        ]
        mask = (torch.rand(1, 8, 8, 22, generator=torch.Generator().manual_seed(-step - 1)) < 0.5).float()
        return Batch((torch.stack(cubes), mask), None)


def test_layers_with_mask_features_learn_too() -> None:
    teacher, student = spectral_pair()
    freeze_mask_branch(student)
    held_out = teacher_outputs(teacher, [Cubes().batch(5, 500, 2).inputs])
    before = weights(student)
    result = distill(student, teacher, Cubes(), held_out, settings(steps=12, learning_rate=1e-5))
    assert [stage["stage"] for stage in result.stages] == ["layers", "end"]
    assert result.after > result.before
    for name, value in student.state_dict().items():
        if ".mm." in name:
            assert torch.equal(value, before[name]), name


# --- checkpointing


@pytest.mark.parametrize("family", ["restormer", "mst"])
def test_checkpointing_gives_the_same_gradients(family: str, pair: Pair) -> None:
    student: nn.Module = pair[1] if family == "restormer" else spectral_pair()[1]
    inputs = (images(2, 4),) if family == "restormer" else Cubes().batch(0, 0, 2).inputs

    def gradients() -> list[Tensor]:
        student.zero_grad(set_to_none=True)
        run(student, inputs).square().sum().backward()
        return [p.grad.clone() for p in student.parameters() if p.grad is not None]

    expected = gradients()
    blocks = stages.checkpoint_blocks(student)
    assert blocks
    actual = gradients()
    assert len(actual) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
    for block in blocks:
        del block.forward
    assert all("forward" not in vars(module) for module in student.modules())


def test_checkpointing_keeps_less(pair: Pair) -> None:
    """Counted in tensors that autograd saves for the backward pass."""
    student = pair[1]

    def saved() -> int:
        sizes: list[int] = []

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run(student, (images(2, 4),))
        return sum(sizes)

    usual = saved()
    stages.checkpoint_blocks(student)
    assert saved() < 0.5 * usual
