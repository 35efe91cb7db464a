"""Keys of rank 0: attention from static and guided modes alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.checkpoint.student import load, save_student, student_metadata
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import UsageError
from csa2glmha.export.onnx import export_onnx
from csa2glmha.families.registry import build
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import layer_config, plan_layers
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers, glmha_layers
from tests.conftest import smooth_images
from tests.subjects import SUBJECTS

pytestmark = pytest.mark.usefixtures("quick_factors")

#: Families that read images.
TINY: dict[str, dict[str, Any]] = {name: dict(SUBJECTS[name].tiny) for name in ("restormer", "mst_plus_plus")}


images = partial(smooth_images, side=16)


def convert(teacher: RestorationModel, ranks: Ranks) -> RestorationModel:
    configs = plan_layers(attention_layers(teacher), ranks)
    return initialise_student(teacher, configs, [(images(4, seed),) for seed in range(3)])[0]


@pytest.fixture(scope="module", params=list(TINY))
def teacher(request: pytest.FixtureRequest) -> RestorationModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(request.param, TINY[request.param]).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def student(teacher: RestorationModel) -> RestorationModel:
    return convert(teacher, Ranks(k=0, v=None)).requires_grad_(False)


def test_nothing_of_rows_and_columns_is_left(teacher: RestorationModel, student: RestorationModel) -> None:
    for layer in glmha_layers(student).values():
        assert (layer.config.rank_q, layer.config.rank_k, layer.config.logits) == (0, 0, "modes")
        assert layer.config.guide_width and layer.config.bias_rank
        assert not layer.config.full and "static and guided" in layer.config.route
        assert all(parameter.numel() for parameter in layer.parameters())
    ranked = convert(teacher, Ranks(k=2, v=None))
    shapes = teacher.input_shapes(16, 16)
    assert count_complexity(student, *shapes).macs < count_complexity(ranked, *shapes).macs


def test_static_attention_is_kept(teacher: RestorationModel, student: RestorationModel) -> None:
    """On one image alone its attention is static: the modes must carry it, to the rank they have."""
    image = images(1)
    configs = plan_layers(attention_layers(teacher), Ranks(k=0, v=None))
    alone, _ = initialise_student(teacher, configs, [(image,), (image,)])
    with torch.no_grad():
        expected, error = teacher(image), (alone(image) - teacher(image)).square().mean()
        other = (student(image) - expected).square().mean()
    assert error < 1e-3 * expected.square().mean()
    assert error <= other


def test_guided_modes_follow_the_image(student: RestorationModel) -> None:
    layer = next(iter(glmha_layers(student).values()))
    channels = layer.config.channels
    x = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    first, second = (layer.correct(layer.no_logits(each), layer.guidance(each)[0]) for each in x.split(1))
    assert not torch.equal(first, second)


def test_export(student: RestorationModel, tmp_path: Path) -> None:
    report = export_onnx(student, tmp_path / "model.onnx")
    assert max(size.relative for size in report.parity) < 1e-4


@pytest.mark.parametrize(("name", "blocks"), [("restormer", [0, 0, 0, 1]), ("mst_plus_plus", [0, 0, 1])])
def test_plain_export(name: str, blocks: list[int], tmp_path: Path) -> None:
    """Of one block, since PyTorch's exporter takes seconds for each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        changes = {"num_refinement_blocks": 0} if name == "restormer" else {}
        small = build(name, TINY[name] | {"num_blocks": blocks} | changes).eval().requires_grad_(False)
    student = convert(small, Ranks(k=0, v=None)).requires_grad_(False)
    assert len(glmha_layers(student)) == 1
    report = export_onnx(student, tmp_path / "model.onnx", plain=True)
    assert max(size.relative for size in report.parity) < 1e-4


def test_file_round_trip(student: RestorationModel, tmp_path: Path) -> None:
    save_student(tmp_path / "student.safetensors", student, student_metadata(student, "0" * 64, 0, {}))
    torch.testing.assert_close(load(tmp_path / "student.safetensors")(images(1)), student(images(1)))


def test_what_rank_0_goes_with() -> None:
    assert Ranks.parse(8, rank_k=0) == Ranks(k=0, v=8)
    with pytest.raises(UsageError, match="at least 1 here"):
        Ranks.parse(0)
    with pytest.raises(UsageError, match="at least 1 here"):
        Ranks.parse(8, rank_v=0)
    layers = attention_layers(build("restormer", TINY["restormer"]))
    with pytest.raises(UsageError, match="leave out --rank-q 4"):
        plan_layers(layers, Ranks(q=4, k=0, v=8))
    with pytest.raises(UsageError, match="rank of 2 or more"):
        plan_layers(layers, Ranks(k=0, v=0), "compact")


@pytest.mark.parametrize(
    "depthwise, bias, branch, from_moments",
    [
        (False, False, True, True),
        (False, False, False, False),
        (True, False, True, False),
        (False, True, True, False),
    ],
)
def test_second_moments_are_enough_for_pointwise_layers_with_a_branch_of_values(
    depthwise: bool, bias: bool, branch: bool, from_moments: bool
) -> None:
    part = Projection(
        torch.eye(4), torch.ones(4) if bias else None, torch.ones(4, 3, 3) if depthwise else None
    )
    form = ChannelAttention(2, part, part, part, torch.ones(2), torch.eye(4), value_branch=branch)
    assert (form.pointwise, form.from_moments) == (not depthwise, from_moments)
    config = layer_config(form, Ranks(k=0, v=1))
    assert config.rank_k == 0
    assert config.rank_v == (2 if branch and not from_moments else 1)  # then all values are needed
