"""Files of networks whose code makes plain numbers of sizes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from csa2glmha.export.frozen import SINGLE_IMAGES, FrozenError
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.networks.builder import Origin
from csa2glmha.networks.foreign import ForeignNetwork, Interface
from tests.networks import frozen


def foreign(network: nn.Module) -> ForeignNetwork:
    return ForeignNetwork(network.eval(), Interface(((1, 3, 16, 24),), 3), Origin("archs.py:build", {}, {}))


def axes_of(file: Path) -> list[int | str]:
    shape = onnx.load(file).graph.input[0].type.tensor_type.shape
    return [size.dim_value or size.dim_param for size in shape.dim]


@pytest.mark.parametrize("build", [frozen.ImageByImage, frozen.Groups])
def test_where_the_batch_is_a_plain_number_the_file_takes_single_images(
    build: type[nn.Module], tmp_path: Path
) -> None:
    model = foreign(build())
    report = export_onnx(model, tmp_path / "single.onnx")
    assert SINGLE_IMAGES in report.notes
    assert axes_of(report.path) == [1, 3, "height", "width"]
    assert [size.shape for size in report.parity] == [(1, 3, 40, 56), (1, 3, 64, 48), (1, 3, 51, 37)]
    assert model.batches  # the user's own is not changed


@pytest.mark.parametrize(
    ("build", "sizes"),
    [
        (frozen.Rows, {"height"}),
        (frozen.Windows, {"height", "width"}),
        (frozen.Pools, {"height", "width"}),
    ],
)
def test_where_sides_are_plain_numbers_the_line_names_the_option_for_one_size(
    build: type[nn.Module], sizes: set[str], tmp_path: Path
) -> None:
    model, file = foreign(build()), tmp_path / "one.onnx"
    with pytest.raises(FrozenError, match=r"plain numbers of its input's height.*--shape 1x3xHxW") as raised:
        export_onnx(model, file)
    assert raised.value.axes == sizes and not file.exists()
    report = export_onnx(model, file, shape=(1, 3, 24, 40))
    assert axes_of(file) == [1, 3, 24, 40] and [size.shape for size in report.parity] == [(1, 3, 24, 40)]
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(OnnxModel(file)(image), model(image), atol=1e-5)


def test_where_the_code_decides_at_a_large_size_it_is_said(tmp_path: Path) -> None:
    report = export_onnx(foreign(frozen.PoolsLater()), tmp_path / "model.onnx")
    said = "the network's code runs other operators at 1064 x 1080 pixels than at 40 x 56"
    assert any(said in note and "--shape" in note for note in report.notes)


def test_other_operators_of_the_same_function_are_no_obstacle(tmp_path: Path) -> None:
    report = export_onnx(foreign(frozen.Pieces()), tmp_path / "model.onnx")
    assert not any("other operators" in note for note in report.notes)
    assert report.parity[-1].shape == (1, 3, 168, 184) and report.parity[-1].relative < 1e-4
