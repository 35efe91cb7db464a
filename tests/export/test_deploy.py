"""The deployment form of networks, its translation to ONNX, and lower precisions."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from csa2glmha import cli
from csa2glmha.commands.export import ExportChoices, export_file
from csa2glmha.config.options import make_options
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import ExportError, UsageError
from csa2glmha.export.asked import Form
from csa2glmha.export.lowering.folding import Affine, PooledNorm, UnitNorm, fold_affine, round_up
from csa2glmha.export.lowering.primitives import shift_back
from csa2glmha.export.lowering.rewrite import deploy, to_half
from csa2glmha.export.metadata import inspect_onnx
from csa2glmha.export.onnx import deployed_graph, export_onnx
from csa2glmha.export.quantize import quantize, robust_convolutions
from csa2glmha.export.runtime import OnnxModel
from csa2glmha.export.targets import TARGETS
from csa2glmha.families.mst.network import bake_mask
from csa2glmha.families.registry import build
from csa2glmha.families.transposed.blocks import ChannelLayerNorm
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.networks import RestorationModel, reflect_pad_to_multiple
from csa2glmha.reading.layers import attention_layers, replace_layers
from tests.conftest import MakeRestormer

RANKS = {
    "teacher": None,
    "k, v": Ranks(None, 4, 4),
    "q, k, v": Ranks(6, 5, 3),
    "v": Ranks(None, None, 4),
}


def randomised(model: RestorationModel, ranks: Ranks | None, attention: str = "expanded") -> RestorationModel:
    """A student of these ranks whose every parameter matters, or the teacher itself."""
    torch.manual_seed(3)
    model = copy.deepcopy(model)
    if ranks is not None:
        replace_layers(model, plan_layers(attention_layers(model), ranks, attention))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
            elif parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            if bool((parameter == 1).all()):
                parameter.mul_(1 + 0.5 * torch.rand_like(parameter))
            if name.endswith(("project_out.weight", "output", "proj.weight")):
                parameter.mul_(3)  # so that attention and feed-forward parts decide the output
    return model.eval()


def relative_difference(output: torch.Tensor, expected: torch.Tensor) -> float:
    return float((output - expected).abs().max() / (expected.max() - expected.min()))


def operators(proto: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


# --- Folding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_bias", [False, True])
def test_unit_norm_and_folded_convolution_are_layer_norm_and_convolution(with_bias: bool) -> None:
    torch.manual_seed(0)
    norm = ChannelLayerNorm(6, with_bias)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    weight, bias = torch.randn(5, 6), torch.randn(5)
    x = torch.randn(2, 6, 3, 4) + 2.0
    affine = Affine(norm.weight, norm.bias, subtract_mean=with_bias)
    folded, shift = fold_affine(weight, bias, affine)
    unit = UnitNorm(6, 1e-5)(x)
    expected = torch.einsum("gc,bchw->bghw", weight, norm(x)) + bias.view(-1, 1, 1)
    found = torch.einsum("gc,bchw->bghw", folded, unit) + shift.view(-1, 1, 1)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("with_bias", [False, True])
def test_pooled_norm_pools_what_the_layer_norm_gives(with_bias: bool) -> None:
    torch.manual_seed(0)
    norm, x = ChannelLayerNorm(6, with_bias), torch.randn(2, 6, 5, 4) + 1.0
    quotient, mean, mean_square = PooledNorm(6, 1e-5, subtract_mean=with_bias)(x)
    torch.testing.assert_close(quotient, UnitNorm(6, 1e-5)(x))
    torch.testing.assert_close(mean, norm(x).mean((2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(mean_square, norm(x).square().mean((2, 3)), atol=1e-5, rtol=1e-4)


def test_round_up() -> None:
    assert [round_up(number, 16) for number in (1, 16, 127, 255)] == [16, 16, 128, 256]


def test_shift_back_takes_a_window_of_every_channel() -> None:
    dispersed = torch.arange(10.0).repeat(1, 2, 3, 1)
    found = shift_back(dispersed, torch.tensor([0, 4]), torch.zeros(1, 2, 3, 5))
    assert found[0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert found[0, 1, 2].tolist() == [4, 5, 6, 7, 8]


# --- The same function ------------------------------------------------------------------------------


@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
@pytest.mark.parametrize(
    "kind", [{}, {"norm_bias": False, "bias": True}, {"dual_pixel": True, "in_channels": 6}]
)
def test_restormer_deployed_is_the_same_in_pytorch_and_onnx(
    make_restormer: MakeRestormer, ranks: int, kind: str, tmp_path: Path
) -> None:
    model = randomised(make_restormer(**kind), ranks)
    before = copy.deepcopy(model.state_dict())
    image = torch.rand(2, model.in_channels, 21, 35)
    with torch.no_grad():
        expected, found = model(image), deploy(model)(image)
    assert relative_difference(found, expected) < 1e-5
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    onnx.save(deployed_graph(model, Form()), tmp_path / "model.onnx")
    assert relative_difference(OnnxModel(tmp_path / "model.onnx")(image), expected) < 1e-5


def test_compact_attention_deployed(make_restormer: MakeRestormer) -> None:
    model = randomised(make_restormer(), Ranks(None, 4, 4), "compact")
    image = torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert relative_difference(deploy(model)(image), model(image)) < 1e-5


@pytest.mark.parametrize(
    "ranks", [None, Ranks(None, 4, 3), Ranks(None, 2, 2, 3)], ids=["teacher", "low", "pos"]
)
@pytest.mark.parametrize("name, dim", [("mst_plus_plus", 7), ("mst", 8), ("baked", 8)])
def test_spectral_networks_deployed(name: str, dim: int, ranks: Ranks | None, tmp_path: Path) -> None:
    settings = (
        {"n_feat": dim, "stage": 1} if name == "mst_plus_plus" else {"dim": dim, "num_blocks": [1, 1, 1]}
    )
    architecture = "mst" if name == "baked" else name
    model = randomised(build(architecture, settings).eval(), ranks)
    inputs = [torch.rand(shape) for shape in model.input_shapes(16, 24, 1)]
    if name == "baked":
        model, inputs = bake_mask(model, inputs[1]), inputs[:1]
    report = export_onnx(model, tmp_path / "model.onnx")
    assert report.rewritten and report.notes == ()
    with torch.no_grad():
        expected = model(*inputs)
        assert relative_difference(deploy(model)(*inputs), expected) < 1e-5
    assert relative_difference(OnnxModel(report.path)(*inputs), expected) < 1e-5


@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (3, 3, 2, 3), (1, 3, 1, 50), (1, 3, 8, 8), (2, 3, 33, 17)])
def test_any_size_runs(deployed_file: Path, student: RestorationModel, shape: tuple[int, ...]) -> None:
    image = torch.rand(shape)
    with torch.no_grad():
        expected = student(image)
    torch.testing.assert_close(OnnxModel(deployed_file)(image), expected, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def student(make_restormer: MakeRestormer) -> RestorationModel:
    return randomised(make_restormer(num_blocks=[0, 0, 1, 1]), Ranks(None, 4, 4))


@pytest.fixture(scope="module")
def deployed_file(student: RestorationModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("deployed") / "student.onnx"
    export_onnx(student, path)
    return path


# --- What the graph is made of ----------------------------------------------------------------------


def test_graph_has_what_was_promised(deployed_file: Path) -> None:
    proto = onnx.load(deployed_file)
    counts = operators(proto)
    blocks = counts["Softmax"]
    assert {node.domain for node in proto.graph.node} == {""}
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 21)]
    assert counts["Gelu"] == 2 * blocks  # feed-forward and guide
    assert counts["DepthToSpace"] == counts["SpaceToDepth"] == 3
    assert not {"Erf", "LayerNormalization", "Expand", "Identity", "ReduceMean", "ReduceL2"} & set(counts)
    # No map is transposed: what is, is a matrix of the logits or keys on their way into a product.
    assert all(
        list(node.attribute[0].ints) in ([0, 1, 3, 2], [0, 2, 1, 3], [0, 2, 1])
        for node in proto.graph.node
        if node.op_type == "Transpose"
    )
    # Feed-forward parts are not split: a split is that of keys and values, or of the guide's outputs.
    assert counts["Split"] <= 2 * blocks
    assert not proto.graph.value_info


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(("opset", "file_format"), [(17, 8), (18, 8), (19, 9), (20, 9), (21, 10)])
def test_older_operators_go_with_older_files(
    student: RestorationModel, tmp_path: Path, opset: int, file_format: int, precision: str
) -> None:
    report = export_onnx(student, tmp_path / "old.onnx", opset=opset, precision=precision)
    assert report.rewritten and report.opset == opset and not report.notes
    proto = onnx.load(report.path)
    assert proto.ir_version == file_format
    counts = operators(proto)
    assert ("Erf" in counts) == (opset < 20) and ("Gelu" in counts) == (opset >= 20)
    assert "Abs" not in counts  # OpenVINO 2026.4 computes it wrongly of whole numbers


def test_widths_are_whole_blocks(make_restormer: MakeRestormer) -> None:
    # 8 * 2.66 = 21 hidden channels, which would be 42 in one depthwise convolution.
    proto = deployed_graph(make_restormer(), Form())
    dims = {tensor.name: list(tensor.dims) for tensor in proto.graph.initializer}
    depthwise = [
        dims[n.input[1]] for n in proto.graph.node if n.op_type == "Conv" and dims[n.input[1]][1] == 1
    ]
    assert depthwise
    assert all(size[0] % 4 == 0 for size in depthwise)
    assert 32 in [size[0] for size in depthwise]


def test_one_sum_alone_lies_between_logits_and_softmax(student: RestorationModel) -> None:
    graph = deployed_graph(student, Form()).graph
    made_by = {name: node for node in graph.node for name in node.output}
    for softmax in (node for node in graph.node if node.op_type == "Softmax"):
        total = made_by[softmax.input[0]]
        parts = [made_by[name].op_type for name in total.input if name in made_by]
        assert total.op_type == "Add" and "Mul" in parts, "OpenVINO 2026.4 compiles no chain of sums here"


def test_names_of_nodes_and_constants_are_unique(deployed_file: Path) -> None:
    graph = onnx.load(deployed_file).graph
    results = [name for node in graph.node for name in node.output]
    assert len(set(results)) == len(results)
    assert len({tensor.name for tensor in graph.initializer}) == len(graph.initializer)
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used


def test_untranslatable_network_is_exported_plainly_with_a_note(tmp_path: Path) -> None:
    class Odd(RestorationModel):
        architecture, size_multiple, in_channels, out_channels = "odd", 4, 3, 3

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            height, width = x.shape[-2:]
            return self.conv(reflect_pad_to_multiple(x, 4)).tanh()[..., :height, :width]

    model = Odd().eval()
    report = export_onnx(model, tmp_path / "odd.onnx")
    assert not report.rewritten
    assert report.notes == ("exported without rewrites for deployment: method tanh",)
    half = export_onnx(model, tmp_path / "half.onnx", precision="fp16")
    assert half.notes == report.notes
    weights = {each.data_type for each in onnx.load(half.path).graph.initializer if len(each.dims) == 4}
    assert weights == {onnx.TensorProto.FLOAT16}


def test_plain_export_differs_and_agrees(tmp_path: Path, make_restormer: MakeRestormer) -> None:
    model = make_restormer(num_blocks=[0, 0, 0, 1], num_refinement_blocks=0)
    plain = export_onnx(model, tmp_path / "plain.onnx", plain=True)
    assert not plain.rewritten and plain.opset == 20 and plain.notes == ()
    assert operators(onnx.load(plain.path))["ReduceL2"] > 0
    image = torch.rand(1, 3, 9, 13)
    found = OnnxModel(plain.path)(image)
    assert relative_difference(found, OnnxModel(export_onnx(model, tmp_path / "new.onnx").path)(image)) < 1e-5


# --- Half precision ---------------------------------------------------------------------------------


def test_half_precision_file(student: RestorationModel, deployed_file: Path, tmp_path: Path) -> None:
    report = export_onnx(student, tmp_path / "half.onnx", precision="fp16")
    assert report.size_bytes < 0.75 * deployed_file.stat().st_size
    image = torch.rand(1, 3, 40, 24)
    with torch.no_grad():
        expected = student(image)
    difference = relative_difference(OnnxModel(report.path)(image), expected)
    assert 1e-6 < difference < 1e-2  # some, so that it is half precision at all
    io = export_onnx(student, tmp_path / "io.onnx", precision="fp16", half_io=True)
    assert inspect_onnx(io.path)["inputs"] == {"input": ["batch", 3, "height", "width"]}
    assert onnx.load(io.path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    assert relative_difference(OnnxModel(io.path)(image), expected) < 1e-2


def test_nothing_overflows_in_half_precision(student: RestorationModel) -> None:
    # Sums over as many pixels as an image of 1024 x 1024 has, of maps as large as trained networks have,
    # would: 65504 is the largest number. Squares of the stream would, at 300.
    deployed = deploy(student)
    to_half(deployed)
    flat = torch.full((1, 3, 512, 512), 0.5)
    flat[..., ::2] = 40.0
    with torch.no_grad():
        found = deployed(flat.half()).float()
        expected = student(flat)
    assert found.isfinite().all()
    assert relative_difference(found, expected) < 2e-2


def test_weak_maps_survive_half_precision(make_restormer: MakeRestormer) -> None:
    # Keys of 1e-4: their mean squares are below the smallest half-precision number.
    model = make_restormer(num_blocks=[0, 0, 0, 1], num_refinement_blocks=0)
    channels = model.latent[0].attn.qkv.out_channels // 3
    with torch.no_grad():
        model.latent[0].attn.qkv.weight[channels : 2 * channels] *= 1e-4
        model.latent[0].attn.project_out.weight *= 5
    deployed = deploy(model)
    to_half(deployed)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(image)
        assert relative_difference(deployed(image.half()).float(), expected) < 2e-2


@pytest.mark.parametrize("ranks", [None, Ranks(None, 3, 3)], ids=["gram", "subspace"])
def test_spectral_sums_do_not_overflow(ranks: Ranks | None) -> None:
    model = randomised(build("mst_plus_plus", {"n_feat": 16, "stage": 1}).eval(), ranks)
    deployed = deploy(model)
    to_half(deployed)
    image = 20 * torch.rand(1, 3, 256, 256)
    with torch.no_grad():
        assert relative_difference(deployed(image.half()).float(), model(image)) < 2e-2


def test_half_precision_on_the_real_denoiser(shared: Path, tmp_path: Path) -> None:
    options = make_options(data=shared / "data" / "cbsd68", degrade="noise:25", input_size=64)
    report, loss = export_file(
        shared / "checkpoints" / "restormer_d24_denoise25.pth",
        tmp_path / "half.onnx",
        ExportChoices(precision="fp16"),
        options,
    )
    assert report.rewritten
    assert loss is not None and loss.exact is not None and loss.lower is not None
    assert abs(loss.lower - loss.exact) <= 0.02
    assert loss.agreement > 60
    assert 28 < loss.exact < 35


# --- Eight bits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "web"])
def test_sensitive_convolutions_stay_in_float(make_restormer: MakeRestormer, target: str, opset: int) -> None:
    form = Form(opset, spelling=TARGETS[target].spelling)
    graph = deployed_graph(make_restormer(dim=16), form).graph
    chosen = robust_convolutions(graph)
    assert any("ffn" in name for name in chosen)
    assert any("down" in name for name in chosen) and any("up" in name for name in chosen)
    assert not any("attn" in name for name in chosen)
    assert not any("project_out" in name for name in chosen)
    convolutions = [node.name for node in graph.node if node.op_type == "Conv"]
    assert convolutions[0] not in chosen and convolutions[-1] not in chosen


def test_without_convolutions_that_bear_eight_bits_the_line_says_so(tmp_path: Path) -> None:
    """A network of one convolution, which is the first and the last."""
    path = tmp_path / "small.onnx"
    image, output = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for name in "xy"
    )
    weight = onnx.numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    node = onnx.helper.make_node("Conv", ["x", "w"], ["y"], "conv")
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph([node], "g", [image], [output], [weight])), path)
    with pytest.raises(
        ExportError, match="no convolution of this network bears eight bits; use --precision fp16"
    ):
        quantize(path, tmp_path / "bytes.onnx", [])
    assert not (tmp_path / "bytes.onnx").exists()


def test_int8_export_measures_its_loss(shared: Path, tmp_path: Path) -> None:
    options = make_options(
        data=shared / "data" / "cbsd68",
        degrade="noise:25",
        input_size=64,
        calibration_crops=4,
        calibration_size=64,
    )
    report, loss = export_file(
        shared / "checkpoints" / "restormer_d24_denoise25.pth",
        tmp_path / "int8.onnx",
        ExportChoices(precision="int8"),
        options,
    )
    assert loss is not None and loss.exact is not None and loss.lower is not None
    assert -0.1 < loss.lower - loss.exact < 0.05
    found = inspect_onnx(report.path)
    assert found["metadata"]["precision"] == "int8"
    assert found["custom_operators"] == []
    assert found["operators"]["QuantizeLinear"] > 10
    assert "int8" in loss.describe("int8")
    weights = [t for t in onnx.load(report.path).graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert weights


# --- The command line -------------------------------------------------------------------------------


def test_metadata_and_inspection(
    make_restormer: MakeRestormer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.save(make_restormer().state_dict(), tmp_path / "small.pth")
    for arguments in (["--teacher", "small.pth"], ["small.pth", "-o", "again.onnx"]):
        run(monkeypatch, tmp_path, "export", *arguments)
    one, other = ((tmp_path / name).read_bytes() for name in ("small.onnx", "again.onnx"))
    assert one == other
    capsys.readouterr()
    run(monkeypatch, tmp_path, "inspect", "small.onnx", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["opset"] == 21
    assert found["outputs"] == {"output": ["batch", 3, "height", "width"]}
    metadata = found["metadata"]
    assert (metadata["name"], metadata["kind"], metadata["architecture"]) == ("small", "teacher", "restormer")
    assert len(metadata["teacher_sha256"]) == 64 and metadata["rewritten"] == "true"
    assert "license" in metadata["license"]
    run(monkeypatch, tmp_path, "inspect", "small.onnx")
    assert "custom ones: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [[], ["a.pth", "--teacher", "a.pth"], ["a.pth", "--io", "fp8"], ["a.pth", "--precision", "fp8"]],
)
def test_wrong_usage(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path, "export", *arguments, expect=2)
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_precisions_that_there_are_not(student: RestorationModel, tmp_path: Path) -> None:
    for changes in ({"precision": "bf16"}, {"half_io": True}):
        with pytest.raises(UsageError):
            export_onnx(student, tmp_path / "x.onnx", **changes)
    assert list(tmp_path.iterdir()) == []


def test_broken_onnx_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model at all")
    run(monkeypatch, tmp_path, "inspect", "broken.onnx", expect=1)
    assert "broken.onnx" in capsys.readouterr().err


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str, expect: int = 0) -> bool:
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == expect
    return True
