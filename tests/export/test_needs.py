"""What a runtime must be to load a file, and runtimes of those versions that load it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from csa2glmha import cli
from csa2glmha.config.ranks import Ranks
from csa2glmha.export.needs import ONNX_RUNTIME, OPENVINO_KNOWS, Need, needs_of
from csa2glmha.export.onnx import export_onnx
from csa2glmha.export.targets import TARGETS
from csa2glmha.networks import RestorationModel
from tests.conftest import MakeRestormer
from tests.export.test_deploy import operators, randomised, relative_difference

#: Folder of virtual environments by the name "onnxruntime-1.16.3" and the like; `.ci/run` makes them.
RUNTIMES = os.environ.get("CSA2GLMHA_RUNTIMES")
#: Runs a file on the arrays of an .npz file.
RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {"input": numpy.load(sys.argv[2])})[0])
print(onnxruntime.__version__)
"""


@pytest.fixture(scope="module")
def student(make_restormer: MakeRestormer) -> RestorationModel:
    return randomised(make_restormer(heads=(1, 2, 2, 4)), Ranks(None, 4, 4))


def one_operator(kind: str, opset: int, ir_version: int, domain: str = "") -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], domain=domain)], "g", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


@pytest.mark.parametrize(
    ("opset", "ir_version", "version"),
    [(17, 8, "1.12"), (17, 9, "1.15"), (18, 8, "1.14"), (20, 9, "1.17"), (21, 10, "1.18"), (99, 10, None)],
)
def test_onnx_runtime_by_opset_and_format(opset: int, ir_version: int, version: str | None) -> None:
    assert needs_of(one_operator("Relu", opset, ir_version))[0] == Need("ONNX Runtime", version)


def test_this_onnx_runtime_is_in_the_table() -> None:
    """The newest opset of the table that this version reads, it reads; the next one it refuses."""
    own = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    known = [each for each in ONNX_RUNTIME if tuple(map(int, each.version.split("."))) <= own]
    newest = known[-1]
    onnxruntime.InferenceSession(
        one_operator("Relu", newest.opset, newest.ir_version).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    later = ONNX_RUNTIME[len(known) : len(known) + 1]
    if later:
        with pytest.raises(Exception, match=r"opset|IR version"):
            onnxruntime.InferenceSession(
                one_operator("Relu", later[0].opset, later[0].ir_version).SerializeToString(),
                providers=["CPUExecutionProvider"],
            )


@pytest.mark.usefixtures("unsimplified")
def test_of_files_for_each_runtime(student: RestorationModel, tmp_path: Path) -> None:
    found = {}
    for name, target in TARGETS.items():
        report = export_onnx(student, tmp_path / f"{name}.onnx", target=target)
        found[name] = {need.runtime: need.version for need in report.needs}
        assert set(operators(onnx.load(report.path))) <= OPENVINO_KNOWS
    assert found["onnxruntime"] == {"ONNX Runtime": "1.18", "OpenVINO": "2024.6", "TensorRT": "11.0"}
    assert found["tensorrt"] == {"ONNX Runtime": "1.12", "OpenVINO": "2024.6", "TensorRT": "8.6"}
    assert found["openvino"]["ONNX Runtime"] == "1.12"
    assert found["web"]["ONNX Runtime"] == "1.17"


def test_of_files_of_others() -> None:
    own = one_operator("FusedConv", 17, 8, "com.microsoft")
    assert [need.version for need in needs_of(own)] == ["1.12", None, None]
    assert "com.microsoft" in needs_of(own)[0].describe()
    unknown = needs_of(one_operator("Celu", 17, 8))
    assert unknown[1] == Need("OpenVINO", None, "not tried with Celu")
    assert unknown[2].note == "by its opset alone"
    newer = needs_of(one_operator("Relu", 26, 13))
    assert newer[1] == Need("OpenVINO", None, "not tried with opset 26")
    assert needs_of(one_operator("Relu", 21, 10))[1].version == "2024.6"
    branch = helper.make_graph([helper.make_node("Far", [], ["z"], domain="far.away")], "b", [], [])
    inside = one_operator("Relu", 17, 8)
    inside.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    assert [need.version for need in needs_of(inside)] == ["1.12", None, None]
    assert "operators of far.away" in needs_of(inside)[0].describe()
    quantised = needs_of(one_operator("QuantizeLinear", 17, 8))
    assert quantised[2].version is None


def test_inspect_tells(student: RestorationModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = export_onnx(student, tmp_path / "model.onnx").path
    with pytest.raises(SystemExit) as ended:
        cli.main(["inspect", str(path)])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "opset 21, IR version 10" in said
    assert "loads in: ONNX Runtime 1.18 and later; OpenVINO 2024.6 and later" in said
    assert "TensorRT 11.0 and later (8.6 refuses" in said


@pytest.mark.parametrize(("version", "opsets"), [("1.16.3", (17, 18, 19)), ("1.17.3", (17, 18, 19, 20))])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_older_onnx_runtimes_load_what_is_made_for_them(
    student: RestorationModel, tmp_path: Path, version: str, opsets: tuple[int, ...], precision: str
) -> None:
    folder = Path(RUNTIMES or "", f"onnxruntime-{version}")
    places = (folder / "bin" / "python", folder / "Scripts" / "python.exe")
    python = next((path for path in places if RUNTIMES and path.exists()), None)
    if python is None:
        pytest.skip(f"no ONNX Runtime {version} in CSA2GLMHA_RUNTIMES: its wheel could not be had")
    image, output = tmp_path / "image.npy", tmp_path / "output.npy"
    torch.manual_seed(0)
    given = torch.rand(1, 3, 19, 24)
    np.save(image, given.numpy())
    with torch.no_grad():
        expected = student(given)
    for opset in opsets:
        report = export_onnx(student, tmp_path / f"{opset}.onnx", opset=opset, precision=precision)
        least = next(need.version for need in report.needs if need.runtime == "ONNX Runtime")
        assert least is not None and tuple(map(int, least.split("."))) <= tuple(map(int, version.split(".")))
        done = subprocess.run(
            [python, "-c", RUN, report.path, image, output], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and done.stdout.strip() == version, done.stderr
        tolerance = 1e-5 if precision == "fp32" else 1e-2
        assert relative_difference(torch.from_numpy(np.load(output)), expected) < tolerance
