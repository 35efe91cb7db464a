"""Students that a program has made in memory, in files and out of them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import csa2glmha
from csa2glmha.checkpoint.student import load_model
from csa2glmha.commands.distill import distill_file
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.families.restormer.network import Restormer
from tests.compression.test_memory import BATCHES, LOW, Around
from tests.conftest import MakeRestormer

pytestmark = pytest.mark.usefixtures("quick_factors")


@pytest.fixture
def saved(tiny_restormer: Restormer, tmp_path: Path) -> tuple[Path, Tensor]:
    """The file of a student of a network that this package does not build, and what the student gives."""
    result = csa2glmha.compress(Around(tiny_restormer), BATCHES, **LOW, progress=False)
    result.save(tmp_path / "around.safetensors")
    return tmp_path / "around.safetensors", result.student(BATCHES[0])


def other_weights(make_restormer: MakeRestormer) -> Around:
    return Around(make_restormer(seed=5))


@pytest.mark.parametrize("built", [False, True], ids=["module", "builder"])
def test_a_student_of_any_network_is_loaded_into_it(
    saved: tuple[Path, Tensor], make_restormer: MakeRestormer, built: bool
) -> None:
    network = other_weights(make_restormer)
    before = copy.deepcopy(network.state_dict())
    path, expected = saved
    loaded = csa2glmha.load(path, network=(lambda: network) if built else network)
    assert isinstance(loaded, Around) and not loaded.training
    assert torch.equal(loaded(BATCHES[0]), expected)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_file_alone_says_what_is_missing(saved: tuple[Path, Tensor]) -> None:
    with pytest.raises(CheckpointError, match=r"is a student of Around, .*network=") as caught:
        csa2glmha.load(saved[0])
    assert "\n" not in str(caught.value)


def test_networks_that_do_not_fit_are_refused(
    saved: tuple[Path, Tensor], make_restormer: MakeRestormer
) -> None:
    path = saved[0]
    wider = Around(make_restormer(dim=16, heads=[1, 1, 2, 4]))
    with pytest.raises(
        CheckpointError, match=r"does not fit Around: .*channels: 8, the network's layer has 16"
    ):
        csa2glmha.load(path, network=wider)
    with pytest.raises(CheckpointError, match=r"does not fit Conv2d: layer 'inner\.encoder_level1\.0\.attn'"):
        csa2glmha.load(path, network=nn.Conv2d(3, 3, 1))
    more = Around(make_restormer(bias=True))
    with pytest.raises(CheckpointError, match=r"around\.safetensors: (keys do not fit|does not fit)"):
        csa2glmha.load(path, network=more)
    with pytest.raises(UsageError, match="network gives a dict"):
        csa2glmha.load(path, network=dict)  # type: ignore[type-var]


def test_weights_alone_are_loaded_into_a_network_too(
    tiny_restormer: Restormer, make_restormer: MakeRestormer, tmp_path: Path
) -> None:
    teacher = Around(tiny_restormer)
    torch.save(teacher.state_dict(), tmp_path / "around.pth")
    loaded = csa2glmha.load(tmp_path / "around.pth", network=other_weights(make_restormer))
    assert torch.equal(loaded(BATCHES[0]), teacher(BATCHES[0]))


def test_a_student_made_in_memory_is_distilled_further_from_its_teachers_file(
    tiny_restormer: Restormer, make_restormer: MakeRestormer, tmp_path: Path
) -> None:
    result = csa2glmha.compress(tiny_restormer, BATCHES, **LOW, progress=False)
    result.save(tmp_path / "student.safetensors")
    torch.save({"params": tiny_restormer.state_dict()}, tmp_path / "teacher.pth")
    torch.save({"params": make_restormer(seed=5).state_dict()}, tmp_path / "other.pth")
    options = make_options(distill_steps=1, crop=32, batch=1, degrade="noise:25")
    with pytest.raises(UsageError, match=r"other\.pth: does not hold the weights .* made from in memory"):
        distill_file(tmp_path / "student.safetensors", tmp_path / "other.pth", None, False, options)
    output, done = distill_file(
        tmp_path / "student.safetensors", tmp_path / "teacher.pth", None, False, options
    )
    assert done.steps == 1
    made = load_model(output)
    assert made.is_student and "teacher_sha256" not in made.checkpoint.metadata
