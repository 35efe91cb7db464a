"""How far values in half precision stay below the limit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from csa2glmha import cli
from csa2glmha.export.headroom import LIMIT, Headroom, measure_headroom
from csa2glmha.export.onnx import export_onnx
from csa2glmha.families.restormer.network import Restormer


def scaled_up_and_down(path: Path, factor: float) -> Path:
    """A file that multiplies by a factor in half precision and divides by it again."""
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["input"], ["half"], name="enter", to=half),
        helper.make_node("Mul", ["half", "factor"], ["large"], name="enlarge"),
        helper.make_node("Div", ["large", "factor"], ["small"], name="reduce"),
        helper.make_node("Cast", ["small"], ["output"], name="leave", to=single),
    ]
    ends = [helper.make_tensor_value_info(name, single, [1, 3, "h", "w"]) for name in ("input", "output")]
    weights = [numpy_helper.from_array(np.array(factor, np.float16), "factor")]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_largest_value_and_where_it_is(tmp_path: Path) -> None:
    path = scaled_up_and_down(tmp_path / "x.onnx", 1024.0)
    images = [torch.full((1, 3, 4, 5), value) for value in (0.25, -2.0, 1.0)]
    found = measure_headroom(path, [(image,) for image in images])
    assert found == Headroom(2048.0, "enlarge", 3)
    assert found.margin == LIMIT / 2048
    assert "largest value met 2048, in enlarge" in found.describe() and "not much" not in found.describe()


@pytest.mark.parametrize(
    ("value", "said"), [(16.0, "not much"), (100.0, "beyond its limit"), (math.nan, "beyond")]
)
def test_what_is_not_safe_is_said(tmp_path: Path, value: float, said: str) -> None:
    path = scaled_up_and_down(tmp_path / "x.onnx", 1024.0)
    found = measure_headroom(path, [(torch.full((1, 3, 4, 5), value),)])
    assert found is not None and said in found.describe()


def test_a_file_in_float32_has_none(tmp_path: Path, tiny_restormer: Restormer) -> None:
    path = export_onnx(tiny_restormer, tmp_path / "model.onnx").path
    assert measure_headroom(path, [(torch.rand(1, 3, 16, 16),)]) is None


def test_of_a_network(tmp_path: Path, tiny_restormer: Restormer) -> None:
    report = export_onnx(tiny_restormer, tmp_path / "half.onnx", precision="fp16")
    assert report.headroom is not None and report.headroom.inputs == 3
    # The values of so small a network are near those of its image.
    assert 0.1 < report.headroom.largest < 1000
    names = {node.name for node in onnx.load(report.path).graph.node}
    assert report.headroom.where in names


def test_the_command_tells(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "half.onnx"
    arguments = ["export", str(checkpoint), "--precision", "fp16", "-o", str(output), "--data", str(photos)]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--input-size", "32"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "fp16: largest value met" in said and "(1 inputs)" in said
