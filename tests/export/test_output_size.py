"""The output's height and width, as programs ask ONNX's shape inference for them."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from csa2glmha.compression.result import described_network
from csa2glmha.config.ranks import Ranks
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.output_size import inferred_shape, tie_output
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.export.targets import DEFAULT_TARGET, TARGETS, Target
from csa2glmha.networks import RestorationModel
from tests.conftest import MakeRestormer
from tests.export.test_deploy import randomised
from tests.subjects import SUBJECTS, Subject


class Enlarging(nn.Module):
    """Super-resolution by two, which pads by itself and crops again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        padded = F.pad(image, (0, -width % 4, 0, -height % 4), "reflect")
        enlarged = F.pixel_shuffle(self.last(F.gelu(self.first(padded))), 2)
        return enlarged[..., : 2 * height, : 2 * width]


def check(path: Path, model: RestorationModel) -> None:
    """Sizes follow from a fixed input, axes have names otherwise, and what the file makes is as it was."""
    proto = onnx.load(path)
    # A network of several inputs takes no odd sizes.
    height, width = (50, 31) if len(model.input_names) == 1 else (40, 24)
    found = inferred_shape(proto, model.input_shapes(height, width, 1))
    assert tuple(found[1:]) == model.output_shape(height, width)[1:]
    named = [size.dim_param for size in proto.graph.output[0].type.tensor_type.shape.dim]
    before = "" if model.scale == 1 else "output_"
    assert named == ["batch", "", f"{before}height", f"{before}width"]
    inputs = tuple(torch.rand(shape) for shape in model.input_shapes(height, width, 1))
    with torch.no_grad():
        expected = model(*inputs)
    torch.testing.assert_close(OnnxModel(path)(*inputs), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)
def test_of_every_family(subject: Subject, tmp_path: Path) -> None:
    model = subject.build()
    check(export_onnx(model, tmp_path / "model.onnx").path, model)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_for_every_runtime(target: Target, tmp_path: Path, make_restormer: MakeRestormer) -> None:
    model = randomised(make_restormer(), Ranks(None, 4, 4))
    check(export_onnx(model, tmp_path / "model.onnx", target=target).path, model)


def test_without_a_sum_with_the_input(tmp_path: Path, make_restormer: MakeRestormer) -> None:
    model = randomised(make_restormer(in_channels=6, dual_pixel=True), None)
    check(export_onnx(model, tmp_path / "model.onnx").path, model)


def test_of_super_resolution(tmp_path: Path) -> None:
    model = described_network(Enlarging().eval(), (torch.rand(1, 3, 16, 24),))
    assert model.scale == 2
    check(export_onnx(model, tmp_path / "model.onnx").path, model)


@pytest.mark.parametrize("half_io", [False, True])
def test_in_half_precision(tmp_path: Path, half_io: bool) -> None:
    model = SUBJECTS["mst_plus_plus"].build()
    path = export_onnx(model, tmp_path / "model.onnx", precision="fp16", half_io=half_io).path
    found = inferred_shape(onnx.load(path), model.input_shapes(40, 24, 1))
    assert tuple(found[1:]) == model.output_shape(40, 24)[1:]


def test_what_follows_already_is_left_alone(tmp_path: Path, make_restormer: MakeRestormer) -> None:
    model = randomised(make_restormer(), None)
    proto = onnx.load(export_onnx(model, tmp_path / "model.onnx", target=DEFAULT_TARGET).path)
    assert tie_output(proto, model) is proto
    # Restormer's last operator is its sum with the input: nothing is added to its graph.
    assert not [node for node in proto.graph.node if node.name.startswith("output/zero")]
