"""Pruning of whole hidden channels, as other tools do it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from csa2glmha.families.registry import build
from csa2glmha.feedforward.form import FeedForward, Parts
from csa2glmha.feedforward.prune import activity, largest, magnitudes
from csa2glmha.feedforward.tensors import Cut
from csa2glmha.initialize.pruning import MAGNITUDE, WANDA, pruned_student
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.feedforwards import feed_forwards, narrowed_widths
from tests.conftest import TINY_RESTORMER, smooth_images

BATCHES = [(smooth_images(2, seed),) for seed in range(2)]
KINDS = [(MAGNITUDE, False), (MAGNITUDE, True), (WANDA, False), (WANDA, True)]


class Gated(nn.Module):
    """A gate beside its value, or in halves."""

    def __init__(self, together: bool) -> None:
        super().__init__()
        self.together = together
        self.wide = nn.Linear(3, 8)
        self.back = nn.Linear(4, 3)

    def read(self) -> FeedForward:
        wide = [Cut(f"wide.{name}", 0, self.together) for name in ("weight", "bias")]
        return FeedForward(self, Parts("back", (Cut("back.weight", 1), *wide), output="rows"))


@pytest.mark.parametrize("together", [False, True])
def test_all_weights_of_a_channel_count(together: bool) -> None:
    """Gate and value lie side by side or apart; a bias does not count."""
    torch.manual_seed(0)
    module = Gated(together)
    layer = module.read()
    wide, back = module.wide.weight.detach().double(), module.back.weight.detach().double()
    for channel in range(4):
        gate, value = (2 * channel, 2 * channel + 1) if together else (channel, 4 + channel)
        expected = wide[gate].norm() * wide[value].norm() * back[:, channel].norm()
        assert magnitudes(layer)[channel] == pytest.approx(float(expected))
    before = magnitudes(layer)
    module.wide.bias.data.fill_(9.0)
    assert torch.equal(magnitudes(layer), before)


def test_activity_is_what_a_channel_alone_adds() -> None:
    layer = Gated(False).read()
    hidden = torch.randn(4, 500, dtype=torch.float64)
    found = activity(layer, hidden @ hidden.T / 500)
    for channel in range(4):
        alone = layer.weight[:, channel].double()[:, None] * hidden[channel]
        assert found[channel] == pytest.approx(float(alone.square().sum(0).mean().sqrt()), rel=1e-6)


def test_the_largest_stay() -> None:
    assert largest(torch.tensor([0.5, 3.0, 2.0, 9.0]), 3).tolist() == [1, 2, 3]


@pytest.fixture(scope="module")
def teacher() -> RestorationModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build("restormer", TINY_RESTORMER).eval().requires_grad_(False)


def output_error(student: nn.Module, teacher: nn.Module, name: str) -> float:
    """Of one feed-forward network's output, from the teacher's activations; of the calibration images."""
    pairs: list[tuple[Tensor, Tensor]] = []
    module = teacher.get_submodule(name)
    handle = module.register_forward_hook(lambda _, args, output: pairs.append((args[0], output)))
    with torch.no_grad():
        for (images,) in BATCHES:
            teacher(images)
        handle.remove()
        own = student.get_submodule(name)
        return sum(float((own(x) - y).square().sum()) for x, y in pairs)


@pytest.mark.parametrize(("kind", "refit"), KINDS)
def test_students_are_as_narrow_as_asked_for(teacher: RestorationModel, kind: str, refit: bool) -> None:
    before = copy.deepcopy(teacher.state_dict())
    widths = {name: 5 + index for index, name in enumerate(feed_forwards(teacher))}
    student = pruned_student(teacher, kind, refit, widths, BATCHES)
    assert narrowed_widths(student) == widths
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name])
        if ".ffn." not in name:
            assert torch.equal(student.state_dict()[name], value)


@pytest.mark.parametrize("kind", [MAGNITUDE, WANDA])
def test_the_refit_is_least_squares(teacher: RestorationModel, kind: str) -> None:
    """No other contraction of the same channels comes closer to the output."""
    layers, generator = feed_forwards(teacher), torch.Generator().manual_seed(5)
    widths = dict.fromkeys(layers, 6)
    plain, refitted = (pruned_student(teacher, kind, refit, widths, BATCHES) for refit in (False, True))
    for name in layers:
        kept = f"{name}.dwconv.weight"
        assert torch.equal(plain.get_parameter(kept), refitted.get_parameter(kept))
        least = output_error(refitted, teacher, name)
        assert least < output_error(plain, teacher, name)
        weight = refitted.get_parameter(f"{name}.project_out.weight").data
        change = 0.01 * weight.abs().mean() * torch.randn(weight.shape, generator=generator)
        for each in (change, -change):
            weight += each
            assert output_error(refitted, teacher, name) > least
            weight -= each
