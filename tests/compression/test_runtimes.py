"""`convert --for`: a file for each runtime in the folder of a conversion, and what the report says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from csa2glmha import cli
from csa2glmha.commands import convert as conversion
from csa2glmha.commands.convert import convert
from csa2glmha.compression.exporting import ExportFor
from csa2glmha.compression.files import CONVERSION_STAGES, replaced
from csa2glmha.compression.workspace import FILES_FOR
from csa2glmha.config.deployment import RUNTIME_NAMES
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import ExportError, OutputError, UsageError
from csa2glmha.export.onnx import ExportReport, export_onnx
from csa2glmha.export.openvino import openvino_version
from csa2glmha.export.targets import TARGETS, Target

QUICK = {"rank": "full", "timing": False, "input_size": 32}


def test_the_names_are_those_of_the_table() -> None:
    assert list(RUNTIME_NAMES) == list(TARGETS)
    assert set(FILES_FOR) == set(TARGETS) - {"onnxruntime"}


@pytest.mark.parametrize(
    "given", ["tensorrt,openvino", ["tensorrt", "openvino"], ("openvino, tensorrt", "tensorrt")]
)
def test_names_are_taken_with_commas_and_one_by_one(given: Any) -> None:
    assert make_options(runtimes=given).runtimes == ("openvino", "tensorrt")


@pytest.mark.parametrize("given", ["ncnn", "openvino,ncnn", 3])
def test_other_names_are_refused(given: Any) -> None:
    with pytest.raises(UsageError, match="--for"):
        make_options(runtimes=given)


def test_each_runtime_has_its_file(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    arguments = ["convert", str(checkpoint), "--rank", "full", "--data", str(photos), "-o", str(folder)]
    arguments += ["--no-latency", "--input-size", "32", "--for", "openvino,web", "--for", "tensorrt"]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0, capsys.readouterr().err
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["onnx"]["runtime"] == "ONNX Runtime" and "tried" not in report["onnx"]
    assert list(report["onnx_for"]) == ["openvino", "tensorrt", "web"] and "onnx_missing" not in report
    text = (folder / "report.md").read_text(encoding="utf-8")
    page = (folder / "report.html").read_text(encoding="utf-8")
    for name, said in report["onnx_for"].items():
        file, target = folder / f"model-{name}.onnx", TARGETS[name]
        proto = onnx.load(file)
        described = {entry.key: entry.value for entry in proto.metadata_props}
        assert said["file"] == file.name and described["runtime"] == said["runtime"] == target.title
        assert said["bytes"] == file.stat().st_size and said["nodes"][1] == len(proto.graph.node)
        assert (said["opset"], said["ir_version"]) == (proto.opset_import[0].version, proto.ir_version)
        assert len(said["parity"]) == 3
        run_here = name == "openvino" and openvino_version() is not None
        assert all(("relative" in each) == run_here for each in said["tried"])
        for written in (text, page):
            assert file.name in written and f"IR version {proto.ir_version}" in written
            assert run_here or f"not run in {target.title}".lower() in written.lower()


def test_a_file_that_is_refused_takes_nothing_along(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def exporter(*arguments: Any, target: Target, **more: Any) -> ExportReport:
        if target.name == "openvino":
            raise ExportError("OpenVINO 1.0: the output differs")
        return export_onnx(*arguments, target=target, **more)

    stages = replaced(ExportFor(exporter), CONVERSION_STAGES)
    monkeypatch.setattr(conversion, "CONVERSION_STAGES", stages)
    folder = tmp_path / "out"
    options = ["--rank", "full", "--no-latency", "--input-size", "32", "--for", "openvino,web"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", str(checkpoint), *options, "-o", str(folder)])
    assert ended.value.code == 1
    assert "--for openvino: OpenVINO 1.0: the output differs" in capsys.readouterr().err
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["onnx_missing"] == {"openvino": "OpenVINO 1.0: the output differs"}
    assert list(report["onnx_for"]) == ["web"]
    assert "No file for openvino" in (folder / "report.md").read_text(encoding="utf-8")
    assert (folder / "model-web.onnx").exists() and not (folder / "model-openvino.onnx").exists()


def test_earlier_files_are_in_the_way_and_go_with_their_student(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "model-tensorrt.onnx").write_text("of another student")
    with pytest.raises(OutputError, match=r"model-tensorrt\.onnx"):
        convert(checkpoint, output=folder, **QUICK)
    convert(checkpoint, output=folder, overwrite=True, **QUICK)
    assert not (folder / "model-tensorrt.onnx").exists() and (folder / "model.onnx").exists()


def test_a_dry_run_names_the_files(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rank", "full", "--input-size", "32", "--for", "web,onnxruntime", "--dry-run"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", str(checkpoint), *arguments, "-o", str(tmp_path / "out")])
    assert ended.value.code == 0
    assert "ONNX files: model.onnx, model-web.onnx" in capsys.readouterr().out
