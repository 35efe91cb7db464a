"""A small teacher, its student and training data, for the tests of distillation."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.config.ranks import Ranks
from csa2glmha.data.batches import Batch
from csa2glmha.distill import DistillSettings, HeldOut, teacher_outputs
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.reading.layers import attention_layers
from tests.conftest import MakeRestormer

Pair = tuple[Restormer, Restormer]

#: The layers of the student that are not exact.
APPROXIMATE = ("encoder_level1.0.attn", "decoder_level1.0.attn")


def image(seed: int) -> Tensor:
    """A smooth image (3, 16, 16)."""
    small = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(small, size=(16, 16), mode="bilinear")[0]


def images(count: int, seed: int) -> Tensor:
    return torch.stack([image(1000 * seed + number) for number in range(count)])


@dataclass(frozen=True)
class Crops:
    """Training batches of smooth images; ``bad`` are steps whose images are ``value``."""

    seed: int = 0
    ground_truth: bool = False
    bad: range = range(0)
    value: float = float("nan")

    def batch(self, step: int, first: int, count: int) -> Batch:
        inputs = torch.stack([image(self.seed + 10 + number) for number in range(first, first + count)])
        if step in self.bad:
            inputs = torch.full_like(inputs, self.value)
        return Batch((inputs,), inputs.flip(-1) if self.ground_truth else None)


def make_pair(make_restormer: MakeRestormer) -> Pair:
    """A teacher and its student, two of whose layers are in rank 1, the others full."""
    teacher = make_restormer(num_refinement_blocks=0)
    layers = attention_layers(teacher)
    configs = plan_layers(layers, Ranks(k=None, v=None))
    configs |= plan_layers({name: layers[name] for name in APPROXIMATE}, Ranks(k=1, v=1))
    student, _ = initialise_student(teacher, configs, [(images(2, 98),), (images(2, 99),)])
    return teacher, student


def make_held_out(teacher: nn.Module) -> HeldOut:
    return teacher_outputs(teacher, [(images(2, 76),), (images(2, 77),)])


def settings(**changes: Any) -> DistillSettings:
    asked = {"steps": 16, "stages": "both", "learning_rate": 1e-3, "batch": 2, "layer_share": 0.2}
    return DistillSettings(**(asked | changes))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def assert_same(model: nn.Module, expected: dict[str, Tensor]) -> None:
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name
