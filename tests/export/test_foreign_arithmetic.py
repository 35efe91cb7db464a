"""Files of networks of the user's own: sums over pixels in half precision, places between pixels, types."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto
from torch import Tensor, nn

from csa2glmha.export import onnx as exporting
from csa2glmha.export.headroom import measure_headroom
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.networks import RestorationModel
from tests.export.test_deploy import relative_difference
from tests.export.test_frozen import foreign


class ByPixels(nn.Module):
    """Channel attention whose logits are sums over pixels times a power of their number."""

    def __init__(self, grouped: bool) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 3, 1)
        self.norm = nn.GroupNorm(2, 16) if grouped else nn.Identity()
        self.qkv = nn.Conv2d(16, 48, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.norm(self.enter(image))
        batch, channels, height, width = maps.shape
        queries, keys, values = self.qkv(maps).flatten(2).split([16] * 3, 1)
        logits = queries @ keys.transpose(1, 2) * self.share(maps)
        mixed = logits.softmax(-1) @ values
        return image + self.leave(mixed.reshape(batch, channels, height, width))

    def share(self, maps: Tensor) -> Any:
        return (maps.shape[2] * maps.shape[3]) ** -0.5


class BySum(ByPixels):
    """The same number, from a sum that goes beyond half precision."""

    def share(self, maps: Tensor) -> Any:
        return (maps[:, :1] * 0 + 1).flatten(2).sum(2, keepdim=True) ** -0.5


class Halved(nn.Module):
    """Maps of half the size, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        small = F.interpolate(self.enter(image), scale_factor=0.5, mode="bilinear", align_corners=False)
        return image + self.leave(F.interpolate(small, size=image.shape[2:], mode="bilinear"))


class Gated(nn.Module):
    """Maps in one type times means in another, and one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(16, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.enter(image)
        gated = maps * maps.float().mean((2, 3), keepdim=True)
        return image + self.leave(torch.cat([maps, gated], 1))


def made(build: Callable[[], nn.Module]) -> RestorationModel:
    torch.manual_seed(0)
    return foreign(build())


def differences(model: RestorationModel, path: Path, side: int) -> float:
    image = torch.rand(1, 3, side, side + 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return relative_difference(OnnxModel(path)(image), model(image))


@pytest.mark.parametrize(
    ("build", "rewritten"),
    [
        (lambda: ByPixels(grouped=True), False),
        (lambda: ByPixels(grouped=False), None),
        (lambda: BySum(grouped=False), True),
    ],
    ids=["plain", "power", "sum"],
)
def test_sums_over_pixels_stay_in_float32(
    build: Callable[[], nn.Module], rewritten: bool | None, tmp_path: Path
) -> None:
    model = made(build)
    report = export_onnx(model, tmp_path / "half.onnx", precision="fp16")
    assert rewritten is None or report.rewritten == rewritten
    proto = onnx.shape_inference.infer_shapes(onnx.load(report.path))
    types = {each.name: each.type.tensor_type.elem_type for each in proto.graph.value_info}
    of = {node.op_type: types.get(node.output[0]) for node in proto.graph.node if node.op_type != "Cast"}
    assert of["Conv"] == TensorProto.FLOAT16
    assert of["Softmax"] == of["MatMul"] == TensorProto.FLOAT
    # 256 * 262 pixels are more than half precision goes up to.
    assert differences(model, report.path, 256) < 5e-3
    image = torch.rand(1, 3, 256, 262, generator=torch.Generator().manual_seed(1))
    headroom = measure_headroom(report.path, [(image,)])
    assert headroom is not None and headroom.largest < 1000


def test_halves_of_odd_sizes_have_their_places(tmp_path: Path) -> None:
    model = made(Halved)
    report = export_onnx(model, tmp_path / "halved.onnx")
    assert report.rewritten and not report.notes
    assert max(differences(model, report.path, side) for side in (33, 64, 75)) < 1e-5


def test_half_precision_and_float32_meet_in_float32(tmp_path: Path) -> None:
    model = made(Gated)
    report = export_onnx(model, tmp_path / "gated.onnx", precision="fp16")
    assert report.rewritten and not report.notes
    assert differences(model, report.path, 75) < 5e-3


def test_what_is_refused_rewritten_is_exported_plainly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = exporting.deployed_graph

    def wrong(*args: Any) -> onnx.ModelProto:
        proto = right(*args)
        (first, *_) = (node for node in proto.graph.node if node.op_type == "Mul")
        first.op_type = "Add"
        return proto

    monkeypatch.setattr(exporting, "deployed_graph", wrong)
    model = made(Gated)
    report = export_onnx(model, tmp_path / "gated.onnx")
    assert not report.rewritten
    assert any("without rewrites for deployment, with them: ONNX Runtime's output" in n for n in report.notes)
    assert differences(model, report.path, 75) < 1e-5
    stored = {each.key: each.value for each in onnx.load(report.path).metadata_props}
    assert stored["rewritten"] == "false"
