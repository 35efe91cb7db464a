"""Compressing networks in memory."""

from __future__ import annotations

import copy
import doctest
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import csa2glmha
from csa2glmha.checkpoint import student
from csa2glmha.commands import convert
from csa2glmha.compression import memory
from csa2glmha.core.errors import DataError, NetworkError, UsageError
from csa2glmha.data.images import write_image
from csa2glmha.distill import DistillSettings
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.reading.feedforwards import feed_forwards, narrowed_widths
from tests.conftest import smooth_images
from tests.networks import builders

pytestmark = pytest.mark.usefixtures("quick_factors")

BATCHES = [torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]

#: Ranks that are found in no time.
LOW: dict[str, Any] = {"rank": "full", "rank_v": 4}


class Around(nn.Module):
    """A network of a user's with a known one in it."""

    def __init__(self, inner: Restormer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 0.5


@pytest.mark.parametrize(("module", "lines"), [(memory, 6), (convert, 3), (student, 2)])
def test_the_examples_of_public_functions_run(
    module: ModuleType,
    lines: int,
    tiny_restormer: Restormer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"params": tiny_restormer.state_dict()}, "tiny.pth")
    done = doctest.testmod(module)
    assert done.failed == 0 and done.attempted >= lines


def test_a_module_around_is_compressed_and_the_teacher_kept(tiny_restormer: Restormer) -> None:
    teacher = Around(tiny_restormer)
    before = copy.deepcopy(teacher.state_dict())
    result = csa2glmha.compress(teacher, BATCHES, **LOW, distill=2, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert result.record.distillation is not None and result.record.distillation.steps == 2
    assert result.student(BATCHES[0]).shape == BATCHES[0].shape


def test_full_rank_is_the_teacher(tiny_restormer: Restormer) -> None:
    result = csa2glmha.compress(tiny_restormer, BATCHES, rank="full", progress=False)
    assert torch.allclose(result.student(BATCHES[0]), tiny_restormer(BATCHES[0]), atol=1e-4)
    assert result.record.distillation is None


class Gated(nn.Module):
    """One that takes a second input, a number for each image."""

    def __init__(self, inner: Restormer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, strength: Tensor) -> Tensor:
        return self.inner(x) * strength.view(-1, 1, 1, 1)


def test_batches_may_be_tuples_and_of_many_sizes(tiny_restormer: Restormer) -> None:
    given = [(torch.rand(2, 3, side, 16 + side), torch.rand(2, 1)) for side in (16, 24)]
    result = csa2glmha.compress(Gated(tiny_restormer), given, **LOW, distill=3, batch=2, progress=False)
    assert result.record.data is not None and result.record.data.training_images == 3
    assert result.record.complexity.input_shapes == ((1, 3, 24, 40), (1, 1))
    assert [result.student(*each).shape for each in given] == [each[0].shape for each in given]


def test_what_is_evaluated_on_may_be_given(tiny_restormer: Restormer) -> None:
    held_out = [torch.rand(3, 3, 24, 24)]
    record = csa2glmha.compress(tiny_restormer, BATCHES, **LOW, held_out=held_out, progress=False).record
    assert record.data is not None and record.quality is not None
    assert (record.data.training_images, record.data.held_out_images) == (4, 3)
    assert record.input_size == (24, 24)
    assert math.isfinite(record.figure("student", "teacher", "psnr") or math.nan)


def test_a_folder_is_read_as_by_convert(tiny_restormer: Restormer, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    for name in "abcdefghi":
        write_image(tmp_path / f"{name}.png", torch.rand(3, 40, 48, generator=generator))
    more: dict[str, Any] = {
        "degrade": "noise:25",
        "input_size": 32,
        "calibration_crops": 4,
        "calibration_size": 32,
    }
    record = csa2glmha.compress(tiny_restormer, tmp_path, progress=False, **LOW, **more).record
    assert record.data is not None and record.data.degradation == "noise:25" and record.knows_ground_truth
    assert record.data.training_images + record.data.held_out_images == 9


@pytest.mark.parametrize("scale", [1, 2])
def test_a_folder_for_a_network_of_the_users_own(scale: int, tmp_path: Path) -> None:
    """What it takes is found by trying: sides of its own multiple, images made twice as large."""
    for index, picture in enumerate(smooth_images(3, side=42)):
        write_image(tmp_path / f"{index}.png", picture)
    network = builders.Signed(0, 255) if scale == 1 else builders.build(scale=2)
    more: dict[str, Any] = {"value_range": "0-255"} if scale == 1 else {}
    more |= {"degrade": "noise:25" if scale == 1 else "down:2", "crop": 16, "batch": 2}
    more |= {"input_size": 20, "calibration_crops": 2, "calibration_size": 16}
    result = csa2glmha.compress(network, tmp_path, rank=2, distill=2, progress=False, **more)
    assert type(result.student) is type(network) and result.record.knows_ground_truth
    assert result.record.teacher.architecture == type(network).__name__
    assert {layer.name.rpartition(".")[2] for layer in result.record.layers} == {"attn"}
    inputs = torch.rand(1, 3, 16, 24) * (255 if scale == 1 else 1)
    result.save(tmp_path / "student.safetensors")
    loaded = csa2glmha.load(tmp_path / "student.safetensors", network=network)
    with torch.no_grad():
        assert torch.equal(result.student(inputs), loaded(inputs))
        assert float((result.student(inputs) - network(inputs)).abs().max()) < 0.2 * float(inputs.max())


def test_options_of_folders_are_for_folders() -> None:
    with pytest.raises(UsageError, match="value_range: is for folders of images"):
        csa2glmha.compress(builders.build(), BATCHES, value_range="0-255", progress=False)
    with pytest.raises(UsageError, match="--range 0-9"):
        csa2glmha.compress(builders.build(), "photos", value_range="0-9", progress=False)
    with pytest.raises(
        NetworkError, match="compress: Failing fails on an input of 1x3x128x192: ZeroDivision"
    ):
        csa2glmha.compress(builders.Failing(), "photos", progress=False)


@pytest.mark.parametrize(
    "distill", [True, 2, DistillSettings(steps=2, stages="end", warmup=0.5, accumulate=2)]
)
def test_distillation_is_recorded_as_it_was_asked_for(
    tiny_restormer: Restormer, distill: bool | int | DistillSettings
) -> None:
    # Minutes that are over after a step or two.
    more: dict[str, Any] = {"distill_minutes": 0.01} if distill is True else {}
    result = csa2glmha.compress(tiny_restormer, BATCHES, distill=distill, progress=False, **LOW, **more)
    record, options = result.record, result.record.options
    assert record.distillation is not None and record.distillation.steps >= 1
    if isinstance(distill, DistillSettings):
        assert (options["distill_stages"], options["accumulate"], options["distill_steps"]) == ("end", 2, 2)
        assert [stage.stage for stage in record.distillation.stages] == ["end"]
        assert (record.distillation.warmup, record.distillation.layer_rate) == (0.5, distill.layer_rate)
    elif distill is True:
        assert options["distill_minutes"] == 0.01 and options["distill_steps"] is None
    else:
        assert options["distill_steps"] == record.distillation.steps == 2


def test_ranks_are_searched_for(tiny_restormer: Restormer) -> None:
    record = csa2glmha.compress(
        Around(tiny_restormer), BATCHES, rank="auto", macs=0.97, progress=False
    ).record
    assert record.search is not None and record.search.budget.kind == "macs"
    assert 0.9 < record.complexity.after.macs / record.complexity.before.macs <= 0.97
    assert len({(layer.rank_k, layer.rank_v) for layer in record.layers}) > 1


@pytest.mark.parametrize(
    ("budget", "match"),
    [
        ({}, "takes one of --macs"),
        ({"macs": 0.01}, "cannot be reached"),
        ({"max_drop": 0.1}, "needs the ground truth"),
        ({"latency": 0.9}, "of no known family"),
    ],
    ids=["none", "too small", "of decibels", "of time"],
)
def test_budgets_that_cannot_be_kept(tiny_restormer: Restormer, budget: dict[str, float], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        csa2glmha.compress(Around(tiny_restormer), BATCHES, rank="auto", progress=False, **budget)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ([], "holds no batches"),
        (3, "no iterable of batches"),
        ([{"x": 1}], "batch 0: holds dict"),
        ([torch.full((1, 3, 16, 16), float("nan"))], "not finite"),
        ([torch.rand(1, 4, 16, 16)], "does not run on inputs"),
    ],
)
def test_unfit_batches(given: object, match: str, tiny_restormer: Restormer) -> None:
    with pytest.raises(DataError, match=match):
        csa2glmha.compress(tiny_restormer, given, progress=False)


class Raising(nn.Module):
    """Its code fails, and says nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.layer, self.error = nn.Conv2d(3, 3, 1), error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize("error", [ValueError(), KeyError("nothing"), AssertionError()])
def test_what_a_network_raises_is_told(error: Exception) -> None:
    with pytest.raises(DataError, match=f"Raising does not run on inputs .*: {type(error).__name__}"):
        csa2glmha.compress(Raising(error), BATCHES, progress=False)


def test_feed_forward_networks_get_narrower(tiny_restormer: Restormer, tmp_path: Path) -> None:
    result = csa2glmha.compress(tiny_restormer, BATCHES, rank="full", ffn=0.5, distill=8, progress=False)
    widths = narrowed_widths(result.student)
    assert widths.keys() == feed_forwards(tiny_restormer).keys()
    assert all(width % 8 == 0 for width in widths.values())
    distillation = result.record.distillation
    assert distillation is not None and [stage.stage for stage in distillation.stages] == ["end"]
    result.save(tmp_path / "student.safetensors")
    loaded = csa2glmha.load(tmp_path / "student.safetensors")
    assert torch.equal(loaded(BATCHES[0]), result.student(BATCHES[0]))


@pytest.mark.parametrize("mixes", [True, False])
def test_images_that_a_network_mixes_are_given_one_at_a_time(
    mixes: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """As many a step as asked for; one that takes single images only would fail on them together."""
    network = builders.Single(mixes)
    found = csa2glmha.compress(network, BATCHES, rank=2, distill=2, batch=2)
    assert "Single makes other outputs of several images at once: it is given one at a time" in (
        capsys.readouterr().err
    )
    said = csa2glmha.compress(network, BATCHES, rank=2, distill=2, batch=1, accumulate=2)
    assert "one at a time" not in capsys.readouterr().err
    other = said.student.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in found.student.state_dict().items())
    settings = DistillSettings(steps=2, batch=2)
    assert csa2glmha.compress(network, BATCHES, rank=2, distill=settings, progress=False).record is not None
