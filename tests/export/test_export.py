"""Export to ONNX and running the files."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.glmha import GLMHA
from csa2glmha.bench.compare import compare_files
from csa2glmha.bench.rounds import Patience
from csa2glmha.core.errors import CheckpointError, DataError, ExportError, OutputError, UsageError
from csa2glmha.export import onnx as exporting
from csa2glmha.export import plain, verify
from csa2glmha.export.onnx import ExportReport, export_onnx
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.families.transposed.blocks import MDTA
from csa2glmha.networks import RestorationModel, reflect_pad_to_multiple

METADATA = {"architecture": "restormer", "task": "noise:25"}

# One for each attention layer of the student below, so that one (slow) export covers them all.
LAYER_CHANGES = [
    {"rank_q": 4, "rank_k": 4, "rank_v": 4, "bias_rank": 2, "guide_width": 3},
    {"rank_v": 4, "bias_rank": 1, "guide_width": 3},
    {"rank_k": 4, "rank_v": 4, "attention": "compact", "guide_width": 2, "bias": True, "output_bias": True},
]


class Tiny(RestorationModel):
    """The smallest network that pads and crops: it converts in a second or two."""

    architecture = "tiny"
    size_multiple = 4

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    in_channels = 3
    out_channels = 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[-2:]
        return self.conv(reflect_pad_to_multiple(x, self.size_multiple))[..., :height, :width]


class Masked(Tiny):
    """Two inputs of different widths, and sizes it does not take."""

    input_names = ("cube", "mask")

    def input_shapes(self, height: int, width: int, batch: int = 1) -> tuple[tuple[int, ...], ...]:
        return (batch, 3, height, width), (1, 2, height, width + 6)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        if not torch.compiler.is_exporting() and (x.shape[-2] % 4 or x.shape[-1] % 4):
            raise DataError("multiples of 4 only")
        return self.conv(x) * mask[..., : x.shape[-1]]


@pytest.fixture(scope="module")
def student() -> Restormer:
    torch.manual_seed(0)
    model = Restormer(dim=8, num_blocks=(0, 0, 0, 1), num_refinement_blocks=2, heads=(2, 1, 1, 4))
    layers = [name for name, module in model.named_modules() if isinstance(module, MDTA)]
    for name, changes in zip(layers, LAYER_CHANGES, strict=True):
        model.set_submodule(name, random_glmha(model.get_submodule(name), changes))
    return model.eval()


def random_glmha(attention: nn.Module, changes: dict[str, Any]) -> GLMHA:
    channels, heads = attention.qkv.in_channels, attention.heads
    c = channels // heads
    config = GLMHAConfig(channels, channels, heads, c, rank_q=c, rank_k=c, rank_v=c)
    layer = GLMHA(replace(config, **changes))
    for parameter in layer.parameters():
        if not parameter.any():  # what a conversion would initialise
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return layer


@pytest.fixture(scope="module")
def report(student: Restormer, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    path = tmp_path_factory.mktemp("export") / "student.onnx"
    return export_onnx(student, path, metadata=METADATA, plain=True)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    torch.manual_seed(1)
    return Tiny().eval()


@pytest.fixture(scope="module")
def tiny_graph(tiny: Tiny) -> onnx.ModelProto:
    return plain.convert(tiny, (torch.rand(2, 3, 20, 28),), exporting.PLAIN_OPSET)


@pytest.fixture
def converted(tiny_graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the test the conversion and simplification of a ``Tiny``, whatever its weights."""
    monkeypatch.setattr(exporting, "convert", lambda *_: copy.deepcopy(tiny_graph))
    monkeypatch.setattr(exporting, "simplify", copy.deepcopy)


def shifted(tiny_graph: onnx.ModelProto, shift: float) -> onnx.ModelProto:
    proto = copy.deepcopy(tiny_graph)
    (bias,) = (tensor for tensor in proto.graph.initializer if tensor.name == "conv.bias")
    bias.CopyFrom(
        onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(shift), bias.name)
    )
    return proto


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# --- The exported student ---------------------------------------------------------------------------


def test_report_says_what_was_written(report: ExportReport) -> None:
    assert report.simplified
    assert report.notes == ()
    assert report.opset == 20
    assert report.size_bytes == report.path.stat().st_size
    assert [size.shape for size in report.parity] == [(2, 3, 40, 56), (1, 3, 64, 48), (1, 3, 51, 37)]
    assert all(0 <= size.relative < 1e-5 for size in report.parity)


@pytest.mark.parametrize(
    "shape", [(1, 3, 1, 1), (1, 3, 2, 3), (3, 3, 1, 50), (1, 3, 8, 8), (2, 3, 33, 17), (1, 3, 96, 128)]
)
def test_any_batch_and_size_runs_as_in_pytorch(
    report: ExportReport, student: Restormer, shape: tuple[int, ...]
) -> None:
    image = torch.rand(shape)
    with torch.no_grad():
        expected = student(image)
    output = OnnxModel(report.path)(image)
    assert output.shape == expected.shape
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_file_is_self_contained_and_standard(report: ExportReport) -> None:
    assert names_in(report.path.parent) == ["student.onnx"]
    proto = onnx.load(report.path, load_external_data=False)
    assert not proto.graph.value_info
    assert {entry.domain for entry in proto.opset_import} == {""}
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions
    assert not any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer)


def test_file_tells_its_metadata_and_nothing_of_the_machine(report: ExportReport) -> None:
    made = {"precision": "fp32", "rewritten": "false", "runtime": "ONNX Runtime"}
    assert OnnxModel(report.path).metadata == METADATA | made
    content = report.path.read_bytes()
    assert b".py" not in content
    assert b"stack_trace" not in content


def test_axes_have_names(report: ExportReport) -> None:
    graph = onnx.load(report.path).graph
    for value, name in ((graph.input[0], "input"), (graph.output[0], "output")):
        dims = value.type.tensor_type.shape.dim
        assert value.name == name
        assert [dim.dim_param or dim.dim_value for dim in dims] == ["batch", 3, "height", "width"]


def test_graph_is_lean(report: ExportReport, student: Restormer) -> None:
    counts = Counter(node.op_type for node in onnx.load(report.path).graph.node)
    modules = list(student.modules())
    assert counts["Conv"] == sum(isinstance(module, nn.Conv2d) for module in modules)
    guides = sum(isinstance(module, GLMHA) and module.guide is not None for module in modules)
    assert counts["Gelu"] == len(LAYER_CHANGES) + guides
    assert counts["Softmax"] == len(LAYER_CHANGES)
    assert {"Identity", "Erf", "Tanh", "Dropout"}.isdisjoint(counts)


def test_runs_with_onnxruntime_and_numpy_alone(
    report: ExportReport, student: Restormer, tmp_path: Path
) -> None:
    image = torch.rand(1, 3, 19, 26)
    np.save(tmp_path / "image.npy", image.numpy())
    script = """
import json, sys
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(output,) = session.run(None, {"input": np.load("image.npy")})
np.save("output.npy", output)
print(json.dumps(sorted({"torch", "onnx", "csa2glmha"} & set(sys.modules))))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(report.path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == []
    with torch.no_grad():
        expected = student(image).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "output.npy"), expected, atol=1e-5, rtol=1e-4)


# --- The export itself ------------------------------------------------------------------------------


def test_export_is_silent_and_leaves_the_model_alone(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = Tiny().double().train()
    before = copy.deepcopy(model.state_dict())
    report = export_onnx(model, tmp_path / "new" / "tiny.onnx")
    assert report.path.exists()
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {value.dtype for value in model.state_dict().values()} == {torch.float64}
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_second_input_has_axes_of_its_own_and_sizes_are_those_taken(tmp_path: Path) -> None:
    model = Masked()
    report = export_onnx(model, tmp_path / "masked.onnx")
    assert [size.shape for size in report.parity] == [(2, 3, 40, 56), (1, 3, 64, 48), (1, 3, 48, 40)]
    loaded = OnnxModel(report.path)
    assert loaded.input_names == ("cube", "mask")
    assert (loaded.in_channels, loaded.out_channels) == (3, 2)
    inputs = [torch.rand(shape) for shape in model.input_shapes(12, 8, 3)]
    torch.testing.assert_close(loaded(*inputs), model(*inputs).detach(), atol=1e-5, rtol=1e-4)
    once = Patience(enough=1, fewest=1, warmup=0)
    times = compare_files({"one": report.path}, *model.input_shapes(8, 8), patience=once)
    assert times.latencies["one"].runs == 1


@pytest.mark.usefixtures("converted")
def test_disagreement_is_an_error_and_nothing_is_written(tiny: Tiny, tmp_path: Path) -> None:
    other = copy.deepcopy(tiny)
    other.conv.bias.data += 0.12
    with pytest.raises(ExportError, match=r"input \(2, 3, 40, 56\)") as caught:
        export_onnx(other, tmp_path / "tiny.onnx", plain=True)
    assert "1.2e-01" in str(caught.value)
    assert "1.0e-04" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []


@pytest.mark.usefixtures("converted")
def test_failed_export_leaves_the_earlier_file(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(b"earlier")
    other = copy.deepcopy(tiny)
    other.conv.weight.data *= float("nan")
    with pytest.raises(ExportError, match="by inf of its range"):
        export_onnx(other, path, plain=True, overwrite=True)
    assert path.read_bytes() == b"earlier"
    assert names_in(tmp_path) == ["tiny.onnx"]


@pytest.mark.usefixtures("converted")
def test_relative_difference_is_over_the_output_range(
    tiny: Tiny, tiny_graph: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shift = 0.25
    monkeypatch.setattr(exporting, "convert", lambda *_: shifted(tiny_graph, shift))
    report = export_onnx(tiny, tmp_path / "tiny.onnx", plain=True, tolerance=10.0)
    for size in report.parity:
        image = verify._synthetic_image(size.shape)
        with torch.no_grad():
            output = tiny(image)
        assert size.max_abs == pytest.approx(shift, rel=1e-4)
        assert size.relative == pytest.approx(shift / float(output.max() - output.min()), rel=1e-4)


@pytest.mark.usefixtures("converted")
def test_existing_file_is_kept_without_overwrite(tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(OutputError, match="already exists"):
        export_onnx(tiny, path, plain=True)
    assert path.read_bytes() == b"earlier"


@pytest.mark.usefixtures("converted")
@pytest.mark.parametrize("failure", ["crash", "wrong result", "invalid graph"])
def test_bad_simplification_is_left_out_with_a_note(
    tiny: Tiny, tiny_graph: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failure: Any
) -> None:
    def simplify(proto: onnx.ModelProto) -> onnx.ModelProto:
        if failure == "crash":
            raise ExportError("onnxsim failed: signal 11")
        changed = shifted(tiny_graph, 0.5)
        if failure == "invalid graph":
            changed.graph.node[0].op_type = "NoSuchOperator"
        return changed

    monkeypatch.setattr(exporting, "simplify", simplify)
    report = export_onnx(tiny, tmp_path / "tiny.onnx", plain=True)
    assert not report.simplified
    assert len(report.notes) == 1
    assert "\n" not in report.notes[0]
    image = torch.rand(1, 3, 9, 5)
    with torch.no_grad():
        torch.testing.assert_close(OnnxModel(report.path)(image), tiny(image), atol=1e-5, rtol=1e-4)


def test_onnxsim_failure_is_caught() -> None:
    with pytest.raises(ExportError, match="onnxsim failed"):
        plain.simplify(onnx.ModelProto())


@pytest.mark.usefixtures("converted")
def test_outputs_are_compared_on_the_example(
    tiny: Tiny, tiny_graph: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flat = torch.full((3, 10, 11), 0.5)
    # A single bright pixel in one corner: crops of a periodic continuation all hold it.
    flat[:, 0, 0] = 1e3
    monkeypatch.setattr(exporting, "convert", lambda *_: shifted(tiny_graph, 0.01))
    report = export_onnx(tiny, tmp_path / "three.onnx", plain=True, example=(flat,))
    assert len(report.parity) == 3
    again = export_onnx(tiny, tmp_path / "four.onnx", plain=True, example=(flat[None],))
    assert again.parity == report.parity
    with pytest.raises(ExportError):
        export_onnx(tiny, tmp_path / "none.onnx", plain=True)


def test_crops_lie_side_by_side_and_repeat_periodically() -> None:
    image = torch.arange(12.0).view(1, 1, 3, 4)
    crops = verify._crops(image, (2, 1, 4, 3))
    assert crops[0, 0].tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10], [0, 1, 2]]
    assert crops[1, 0].tolist() == [[3, 0, 1], [7, 4, 5], [11, 8, 9], [3, 0, 1]]


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (8, 8), (1, 3, 0, 8)])
def test_unfit_example_is_refused(tiny: Tiny, tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"example input .* give \(1, 3, height, width\)"):
        export_onnx(tiny, tmp_path / "tiny.onnx", plain=True, example=(torch.zeros(shape),))


@pytest.mark.parametrize("opset", [17, 999])
def test_unsupported_opset_is_refused(tiny: Tiny, tmp_path: Path, opset: int) -> None:
    with pytest.raises(UsageError, match=str(opset)):
        export_onnx(tiny, tmp_path / "tiny.onnx", plain=True, opset=opset)


@pytest.mark.usefixtures("converted")
def test_opset_other_than_asked_for_is_noted(tiny: Tiny, tmp_path: Path) -> None:
    report = export_onnx(tiny, tmp_path / "tiny.onnx", plain=True, opset=21)
    assert report.opset == 20
    assert report.notes == ("the exporter could not give opset 21, the file has opset 20",)


def test_network_that_cannot_be_converted(tmp_path: Path) -> None:
    class Branching(Tiny):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > 0 else x[:, :2]

    with pytest.raises(ExportError, match="ONNX, what it runs depends on the values of its input") as caught:
        export_onnx(Branching(), tmp_path / "branching.onnx", plain=True)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []


# --- Running files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [None, b"", b"not a model at all"])
def test_unusable_file_is_a_checkpoint_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.onnx") as caught:
        OnnxModel(path)
    assert "\n" not in str(caught.value)
    assert ("no such file" in str(caught.value)) == (content is None)


def test_foreign_model_is_a_checkpoint_error(tmp_path: Path) -> None:
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 5]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    opset = onnx.helper.make_opsetid("", 20)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), tmp_path / "foreign.onnx")
    with pytest.raises(CheckpointError, match="'x'"):
        OnnxModel(tmp_path / "foreign.onnx")


def test_inputs_that_do_not_fit_are_data_errors(report: ExportReport) -> None:
    model = OnnxModel(report.path)
    with pytest.raises(DataError, match=r"\(batch, 3, height, width\), not \(1, 4, 8, 8\)"):
        model(torch.zeros(1, 4, 8, 8))
    with pytest.raises(DataError, match="takes 1 inputs, not 2"):
        model(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8))
    with pytest.raises(DataError, match=r"fails on input of shape \(1, 3, 0, 8\)"):
        model(torch.zeros(1, 3, 0, 8))
