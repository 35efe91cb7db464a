"""ONNX files of networks that a program has compressed in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import csa2glmha
from csa2glmha.core.errors import ExportError
from csa2glmha.families.restormer.network import Restormer
from tests.compression.test_memory import BATCHES, LOW, Around
from tests.compression.test_reported import Gray
from tests.conftest import MakeRestormer
from tests.networks.builders import Weighed

pytestmark = pytest.mark.usefixtures("quick_factors")


@pytest.mark.parametrize("around", [False, True], ids=["known family", "any network"])
def test_a_file_agrees_with_the_student_at_any_size(
    make_restormer: MakeRestormer, tmp_path: Path, around: bool
) -> None:
    # PyTorch's exporter, which exports any network, takes seconds for each block.
    few: dict[str, Any] = {"num_blocks": [1, 0, 0, 1], "num_refinement_blocks": 0}
    model = Around(make_restormer(**few)) if around else make_restormer()
    result = csa2glmha.compress(model, BATCHES, progress=False, **LOW)
    report = result.export(tmp_path / "student.onnx")
    assert len({size.shape for size in report.parity}) == 3
    assert max(size.relative for size in report.parity) < 1e-4
    assert report.rewritten is not around  # another network than ours is exported as it is
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    image = torch.rand(1, 3, 45, 70, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        expected = result.student(image)
    (output,) = session.run(None, {"input": image.numpy()})
    assert torch.allclose(torch.from_numpy(output), expected, atol=1e-5)
    assert "teacher_values_sha256" in session.get_modelmeta().custom_metadata_map


def test_a_file_for_one_size_in_half_precision(tiny_restormer: Restormer, tmp_path: Path) -> None:
    result = csa2glmha.compress(tiny_restormer, BATCHES, progress=False, **LOW)
    path = tmp_path / "student.onnx"
    report = result.export(path, shape=(1, 3, 24, 40), opset=18, precision="fp16")
    assert {size.shape for size in report.parity} == {(1, 3, 24, 40)}
    session = onnxruntime.InferenceSession(path)
    assert session.get_inputs()[0].shape == [1, 3, 24, 40]
    assert session.get_modelmeta().custom_metadata_map["precision"] == "fp16"
    assert onnx.load(path).opset_import[0].version == 18


def test_further_inputs_may_be_numbers(tmp_path: Path) -> None:
    given = [(torch.rand(2, 3, 16, 24), torch.rand(2, 2))]
    result = csa2glmha.compress(Weighed(), given, rank=2, progress=False)
    report = result.export(tmp_path / "student.onnx")
    assert [size.shape[0] for size in report.parity] == [2, 1, 1]
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    image, numbers = torch.rand(2, 3, 28, 40), torch.tensor([[0.25, 0.5], [3.0, -1.0]])
    (output,) = session.run(None, {"input": image.numpy(), "input2": numbers.numpy()})
    with torch.inference_mode():
        assert torch.allclose(torch.from_numpy(output), result.student(image, numbers), atol=1e-5)


class Closed(nn.Module):
    """One that PyTorch's exporter cannot follow."""

    def __init__(self, inner: Restormer) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            raise RuntimeError("not in a graph")
        return self.inner(x)


@pytest.mark.parametrize(
    ("kind", "given", "match"),
    [
        (Gray, [torch.rand(2, 16, 16)], "Gray takes an input of 1x16x16"),
        (Closed, BATCHES, "cannot be converted to ONNX opset .*: not in a graph"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    tiny_restormer: Restormer, tmp_path: Path, kind: type[nn.Module], given: object, match: str
) -> None:
    result = csa2glmha.compress(kind(tiny_restormer), given, progress=False, **LOW)
    with pytest.raises(ExportError, match=match) as caught:
        result.export(tmp_path / "student.onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())
