"""Files for a runtime: how the network is spelled, what is tried, fixed shapes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from csa2glmha import cli
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import CheckpointError, ExportError, UsageError
from csa2glmha.export import trial
from csa2glmha.export.asked import Form
from csa2glmha.export.lowering.rewrite import deploy
from csa2glmha.export.onnx import ExportReport, deployed_graph, export_onnx
from csa2glmha.export.openvino import OpenVinoSession
from csa2glmha.export.targets import TARGETS, target_of
from csa2glmha.export.tensorrt import PROFILE, refused
from csa2glmha.export.verify import Case, Check, cases_for
from csa2glmha.families.registry import build
from csa2glmha.inference import plan
from csa2glmha.inference.model import open_model
from csa2glmha.networks import RestorationModel
from tests.conftest import MakeRestormer
from tests.export.test_deploy import RANKS, operators, randomised, relative_difference

needs_openvino = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="OpenVINO is not installed"
)


@pytest.fixture(scope="module")
def student(make_restormer: MakeRestormer) -> RestorationModel:
    return randomised(make_restormer(heads=(1, 2, 2, 4)), Ranks(None, 4, 4))


@pytest.mark.parametrize("norm_bias", [False, True])
@pytest.mark.parametrize("ranks", RANKS.values(), ids=RANKS)
def test_channels_last_is_the_same_network(
    make_restormer: MakeRestormer, ranks: Ranks | None, norm_bias: bool
) -> None:
    model = randomised(make_restormer(norm_bias=norm_bias), ranks)
    image = torch.rand(2, 3, 19, 24)
    with torch.no_grad():
        assert relative_difference(deploy(model, channels_last=True)(image), model(image)) < 1e-5


@pytest.mark.parametrize("ranks", [None, Ranks(None, 4, 3)], ids=["teacher", "low"])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mst", {"dim": 8, "num_blocks": [1, 1, 1]}),
        ("mst_plus_plus", {"n_feat": 7, "stage": 1}),
        ("retinexformer", {"n_feat": 8, "stage": 1, "num_blocks": [1, 1, 1]}),
        ("cidnet", {"channels": [8, 8, 16, 16], "heads": [1, 1, 2, 2]}),
    ],
)
def test_every_family_is_written_channels_last(
    name: str, settings: dict[str, object], ranks: Ranks | None, tmp_path: Path
) -> None:
    """Students are run in OpenVINO, too, which takes seconds to compile them."""
    model = randomised(build(name, settings).eval(), ranks)
    target = target_of("openvino") if ranks else replace(target_of("openvino"), package="")
    report = export_onnx(model, tmp_path / "model.onnx", target=target)
    assert report.rewritten and not report.notes
    assert "MaxPool" not in operators(onnx.load(report.path)) or name == "cidnet"


@pytest.mark.parametrize("name", TARGETS)
def test_files_say_what_they_are_for(
    student: RestorationModel, tmp_path: Path, request: pytest.FixtureRequest, name: str
) -> None:
    target = TARGETS[name]
    if name == "openvino":
        report = request.getfixturevalue("for_openvino")
    else:
        report = export_onnx(student, tmp_path / "model.onnx", target=target)
    proto = onnx.load(report.path)
    described = {entry.key: entry.value for entry in proto.metadata_props}
    assert report.opset == target.opset and described["runtime"] == target.title
    assert ("MaxPool" in operators(proto)) == (name == "onnxruntime")
    assert bool(report.tried) == (name != "onnxruntime")
    assert (PROFILE in described) == (name == "tensorrt")


@pytest.mark.usefixtures("unsimplified")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shape", [None, (1, 3, 16, 24), (2, 3, 19, 21)])
def test_tensorrt_8_6_takes_all_operators(
    student: RestorationModel, tmp_path: Path, shape: tuple[int, ...] | None, precision: str
) -> None:
    target = TARGETS["tensorrt"]
    report = export_onnx(student, tmp_path / "model.onnx", target=target, shape=shape, precision=precision)
    assert refused(onnx.load(report.path)) == []
    said = report.tried[0].describe()
    assert "TensorRT 8.6 and 10" in said
    # Half precision is where the file says so, not wherever trtexec would like it.
    assert ("--stronglyTyped" in said) == (precision == "fp16") and "--fp16" not in said
    assert ("--minShapes=input:1x3x64x64 " in said) == (shape is None)


def test_what_tensorrt_refuses_is_named(student: RestorationModel) -> None:
    found = refused(deployed_graph(student, Form(21)))
    assert {"Gelu", "Shape of some axes", "opset 21, where it knows 17"} <= set(found)
    whole = helper.make_node("ReduceProd", ["sizes"], ["count"])
    sizes = helper.make_tensor_value_info("sizes", TensorProto.INT64, [2])
    count = helper.make_tensor_value_info("count", TensorProto.INT64, [1])
    graph = helper.make_graph([whole], "graph", [sizes], [count])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert refused(proto) == ["ReduceProd of INT64"]


def test_a_fixed_shape_is_in_the_file_and_shortens_it(student: RestorationModel, tmp_path: Path) -> None:
    report = export_onnx(student, tmp_path / "fixed.onnx", shape=(1, 3, 16, 24))
    graph = onnx.load(report.path).graph
    for value in (graph.input[0], graph.output[0]):
        assert [size.dim_value for size in value.type.tensor_type.shape.dim] == [1, 3, 16, 24]
    assert report.nodes[0] > report.nodes[1] == len(graph.node) and report.simplified
    assert "Shape" not in operators(onnx.load(report.path))
    assert [size.shape for size in report.parity] == [(1, 3, 16, 24)]


@pytest.mark.parametrize("shape", [(1, 4, 16, 16), (3, 16, 16), (1, 3, 0, 16)])
def test_a_shape_that_the_model_does_not_take(
    student: RestorationModel, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    with pytest.raises(UsageError, match="--shape"):
        export_onnx(student, tmp_path / "fixed.onnx", shape=shape)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("unsimplified")
def test_the_command_line_takes_runtime_and_shape(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.onnx"
    arguments = ["export", str(checkpoint), "-o", str(output), "--for", "tensorrt"]
    for shape in ("1x3x16", "1x3x0x16", "1x3x16x", "1x3x-8x8", "1x3x\u0663x16"):  # the last is an Arabic 3
        with pytest.raises(SystemExit) as ended:  # told before the file is looked for
            cli.main(["export", str(tmp_path / "missing.pth"), "--shape", shape])
        assert ended.value.code == 2 and f"--shape {shape}: give batch" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--shape", "1x3x16x16"])
    assert ended.value.code == 0
    assert "not run in TensorRT" in capsys.readouterr().out


def test_a_runtime_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("csa2glmha.export.openvino.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install csa2glmha\[openvino\]"):
        OpenVinoSession(tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="--for ncnn: unknown"):
        target_of("ncnn")


@pytest.fixture(scope="module")
def for_openvino(student: RestorationModel, tmp_path_factory: pytest.TempPathFactory) -> ExportReport:
    """Compiling takes seconds, so tests share the file."""
    path = tmp_path_factory.mktemp("openvino") / "model.onnx"
    return export_onnx(student, path, target=TARGETS["openvino"])


@needs_openvino
def test_openvino_runs_the_file_before_it_gets_its_name(
    student: RestorationModel, for_openvino: ExportReport, tmp_path: Path
) -> None:
    assert [each.sizes for each in for_openvino.tried] == ["open", "fixed"]
    assert all(each.relative is not None and each.relative < 1e-4 for each in for_openvino.tried)
    assert all(each.psnr is not None and each.psnr > 30 for each in for_openvino.tried)
    report = export_onnx(student, tmp_path / "fixed.onnx", target=TARGETS["openvino"], shape=(1, 3, 16, 24))
    assert [each.sizes for each in report.tried] == ["fixed"]


@needs_openvino
@pytest.mark.parametrize(("default", "hints"), [("f32", ["f32"]), ("bf16", ["f32", None])])
def test_a_default_precision_of_its_own_is_tried_too(
    student: RestorationModel,
    for_openvino: ExportReport,
    monkeypatch: pytest.MonkeyPatch,
    default: str,
    hints: list[str | None],
) -> None:
    tried: list[str | None] = []

    def outputs(
        path: Path, check: Check, where: str, precision: str | None, fixed: bool
    ) -> list[tuple[Tensor, Case]]:
        tried.append(precision)
        return [(case.expected + (0.01 if precision is None else 0), case) for case in check.cases]

    monkeypatch.setattr(trial, "_outputs", outputs)
    monkeypatch.setattr(trial, "default_precision", lambda: default)
    found = trial.try_file(for_openvino.path, TARGETS["openvino"], Check(cases_for(student, None), 1e-4))
    assert tried == 2 * hints  # open sizes and fixed ones
    for each in found:
        assert each.relative == 0 and each.psnr is not None
        assert (each.psnr > 60) == (default == "f32")


@needs_openvino
@pytest.mark.parametrize("place", [0, 2])
def test_a_value_that_is_no_number_is_refused_at_any_size(
    student: RestorationModel, for_openvino: ExportReport, monkeypatch: pytest.MonkeyPatch, place: int
) -> None:
    check = Check(cases_for(student, None), 1e-4)
    results = [(case.expected.clone(), case) for case in check.cases]
    results[place][0][0, 0, 0, 0] = float("nan")
    monkeypatch.setattr(trial, "_outputs", lambda *_: results)
    with pytest.raises(ExportError, match=r"the output in float32 differs .* by inf"):
        trial.try_file(for_openvino.path, TARGETS["openvino"], check)
    monkeypatch.setattr(trial, "_outputs", lambda *_: [(case.expected[:, :1], case) for case in check.cases])
    with pytest.raises(
        ExportError, match=r"open sizes: gives an output of shape \(2, 1, .*, PyTorch \(2, 3,"
    ):
        trial.try_file(for_openvino.path, TARGETS["openvino"], check)


@needs_openvino
@pytest.mark.parametrize(("wrong", "said"), [(0.002, False), (0.1, True), (float("nan"), True)])
def test_a_default_precision_that_is_far_off_is_named(
    student: RestorationModel,
    for_openvino: ExportReport,
    monkeypatch: pytest.MonkeyPatch,
    wrong: float,
    said: bool,
) -> None:
    def outputs(
        path: Path, check: Check, where: str, precision: str | None, fixed: bool
    ) -> list[tuple[Tensor, Case]]:
        return [(case.expected + (wrong if precision is None else 0), case) for case in check.cases]

    monkeypatch.setattr(trial, "_outputs", outputs)
    monkeypatch.setattr(trial, "default_precision", lambda: "bf16")
    found = trial.try_file(for_openvino.path, TARGETS["openvino"], Check(cases_for(student, None), 1e-4))
    assert all(("set INFERENCE_PRECISION_HINT to f32" in each.describe()) == said for each in found)


@needs_openvino
def test_openvino_compiles_for_a_shape_that_comes_again(
    student: RestorationModel, for_openvino: ExportReport, tmp_path: Path
) -> None:
    session = OpenVinoSession(for_openvino.path, 1, "f32")
    for size in (16, 16, 16, 24, 16):
        image = torch.rand(1, 3, size, size)
        with torch.no_grad():
            expected = student(image)
        (found,) = session.run(["output"], {"input": image.numpy()})
        assert relative_difference(torch.from_numpy(found), expected) < 1e-5
    with pytest.raises(CheckpointError, match="no such file"):
        OpenVinoSession(tmp_path / "missing.onnx")


@needs_openvino
def test_openvino_keeps_what_it_compiled_for_upright_and_lying_images(
    for_openvino: ExportReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = OpenVinoSession(for_openvino.path, 1, "f32")
    compiled: list[tuple[int, ...]] = []
    right = OpenVinoSession._compile

    def counted(self: OpenVinoSession, shapes: tuple[tuple[int, ...], ...]) -> Any:
        compiled.append(shapes[0][2:])
        return right(self, shapes)

    monkeypatch.setattr(OpenVinoSession, "_compile", counted)
    for size in [(16, 24), (24, 16)] * 4 + [(16, 24)] * 3:
        session.run(["output"], {"input": torch.rand(1, 3, *size).numpy()})
    assert compiled == [(16, 24), (24, 16)]
    for _ in range(2):  # the one that was used longest ago makes room
        session.run(["output"], {"input": torch.rand(1, 3, 8, 8).numpy()})
    session.run(["output"], {"input": torch.rand(1, 3, 16, 24).numpy()})
    assert compiled == [(16, 24), (24, 16), (8, 8)]


def test_a_runtime_of_onnx_files_takes_no_checkpoint(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="--runtime openvino: runs ONNX files"):
        open_model(checkpoint, "openvino")


@needs_openvino
def test_openvino_restores_as_onnx_runtime(for_openvino: ExportReport) -> None:
    path = for_openvino.path
    image = torch.rand(1, 3, 19, 24)
    outputs = [open_model(path, runtime).run((image,)) for runtime in ("onnxruntime", "openvino-f32")]
    assert relative_difference(outputs[1], outputs[0]) < 1e-5
    assert open_model(path, "openvino").metadata["runtime"] == "OpenVINO"


def with_the_size_of_a_clip(path: Path, height: int, width: int) -> bytes:
    """The file as VapourSynth's plugins (vs-mlrt) change it before a runtime reads it."""
    proto = onnx.load(path)
    (given,), (made,) = proto.graph.input, proto.graph.output
    sizes, results = (value.type.tensor_type.shape.dim for value in (given, made))
    sizes[0].dim_value, sizes[2].dim_value, sizes[3].dim_value = 1, height, width
    results[0].dim_value = 1
    del proto.graph.value_info[:]
    return proto.SerializeToString()


@needs_openvino
@pytest.mark.usefixtures("unsimplified")
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_files_take_the_size_of_a_clip(student: RestorationModel, tmp_path: Path, name: str) -> None:
    """Both runtimes know the output's size before anything runs, which vs-mlrt asks."""
    import openvino

    target = replace(TARGETS[name], package="")  # the file is not tried twice
    path = export_onnx(student, tmp_path / "model.onnx", target=target).path
    fixed, frame = with_the_size_of_a_clip(path, 19, 24), torch.rand(1, 3, 19, 24)
    with torch.no_grad():
        expected = student(frame)
    session = onnxruntime.InferenceSession(fixed, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [1, 3, 19, 24]
    core = openvino.Core()
    network = core.read_model(fixed)
    assert list(network.output().get_shape()) == [1, 3, 19, 24]
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    (found,) = session.run(None, {"input": frame.numpy()})
    for output in (found, compiled({"input": frame.numpy()})[0]):
        assert relative_difference(torch.from_numpy(output), expected) < 1e-5


#: Prints what the files make of one image.
IN_NODE = """
const ort = require('onnxruntime-web'), files = process.argv.slice(1);
ort.env.wasm.numThreads = 1;
(async () => {
  const image = Float32Array.from({length: 3 * 16 * 24}, (_, i) => ((i * 7919) % 1000) / 1000), made = [];
  for (const file of files) {
    const session = await ort.InferenceSession.create(file, {executionProviders: ['wasm']});
    made.push((await session.run({input: new ort.Tensor('float32', image, [1, 3, 16, 24])})).output.data);
  }
  console.log(JSON.stringify(made.map(output => Array.from(output))));
})();
"""


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2)])
def test_the_file_for_the_web_runs_in_node(
    student: RestorationModel, tmp_path: Path, precision: str, tolerance: float
) -> None:
    node = shutil.which("node")
    if (
        node is None
        or subprocess.run([node, "-e", "require('onnxruntime-web')"], capture_output=True).returncode
    ):
        pytest.skip("node or onnxruntime-web is not installed (npm install -g onnxruntime-web, NODE_PATH)")
    target = TARGETS["web"]
    path = export_onnx(student, tmp_path / "web.onnx", target=target, precision=precision).path
    done = subprocess.run([node, "-e", IN_NODE, str(path)], capture_output=True, text=True, check=True)
    found = torch.tensor(json.loads(done.stdout)[0]).view(1, 3, 16, 24)
    image = (torch.arange(3 * 16 * 24) * 7919 % 1000 / 1000).view(1, 3, 16, 24)
    with torch.no_grad():
        assert relative_difference(found, student(image)) < tolerance


@pytest.mark.parametrize(
    ("runtime", "runs", "overhead"), [("onnxruntime", 1, 2.5), ("openvino-f32", 2, 1.25)]
)
def test_memory_is_estimated_in_the_runtime_that_will_run(
    student: RestorationModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: str,
    runs: int,
    overhead: float,
) -> None:
    path = export_onnx(student, tmp_path / "model.onnx").path
    opened = replace(open_model(path, "cpu"), runtime=runtime)
    tried: list[str] = []

    class Session:
        def __init__(self, path: Path, runtime: str) -> None:
            self.runtime = runtime

        def __call__(self, *inputs: torch.Tensor) -> None:
            tried.append(self.runtime)

    monkeypatch.setattr(plan, "OnnxModel", Session)
    # Nothing grows here, so that it is the image itself that is multiplied: of three channels in float32.
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=0))
    monkeypatch.setattr(plan.psutil, "Process", lambda: process)
    restorer = plan.Restorer(path, opened, torch.device("cpu"), plan.TileOptions())
    assert restorer._onnx_bytes(1000) == int(overhead * 3 * 4 * 1000)
    assert tried == [runtime] * runs
