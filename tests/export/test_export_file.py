"""`export` as a command: what it refuses, what it says, and what it never replaces."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from csa2glmha.checkpoint.student import save_student, student_metadata
from csa2glmha.commands import export as file
from csa2glmha.core.errors import DataError
from csa2glmha.data import write_image
from csa2glmha.export.metadata import inspect_onnx
from csa2glmha.export.openvino import openvino_version
from tests.command_line import complaint, run
from tests.conftest import MakeRestormer

QUICK = ["--calibration-crops", 2, "--calibration-size", 32, "--input-size", 32]


@pytest.fixture
def checkpoint(make_restormer: MakeRestormer, tmp_path: Path) -> Path:
    path = tmp_path / "small.pth"
    torch.save(make_restormer().state_dict(), path)
    return path


@pytest.fixture
def student(make_restormer: MakeRestormer, tmp_path: Path) -> Path:
    """A student that says it was made for noise of sigma 50."""
    model, path = make_restormer(), tmp_path / "student.safetensors"
    save_student(path, model, student_metadata(model, "0" * 64, 0, {"ranks": "full", "task": "noise:50"}))
    return path


def exported(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    """Run `export`; what it printed on both streams."""
    code, out, err = run("export", *arguments, capsys=capsys)
    assert code == 0, err
    return out, err


def refused(*arguments: object, capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run `export` with something that must fail; returns its one line."""
    return complaint("export", *arguments, capsys=capsys, code=code)


# --- The output -------------------------------------------------------------------------------------


def test_the_model_itself_is_never_replaced(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named_onnx = checkpoint.rename(tmp_path / "small.onnx")
    (tmp_path / "link.onnx").symlink_to(named_onnx)
    before = named_onnx.read_bytes()
    for output in ([], ["-o", named_onnx], ["-o", tmp_path / "link.onnx"]):
        line = refused(named_onnx, *output, "--overwrite", capsys=capsys)
        assert "is the model itself" in line
    assert named_onnx.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.onnx", "small.onnx"]


def test_the_output_is_known_by_its_suffix(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("small.pth", "out.bin", "out"):
        line = refused(checkpoint, "-o", tmp_path / name, "--overwrite", capsys=capsys)
        assert ".onnx; add it" in line
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


# --- Choices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp16", "--opset", "16"], "opset 16 cannot be written: choose one from 17 to"),
        (["--plain", "--opset", "17"], "opset 17 cannot be written plainly: choose one from 18 to"),
        (["--precision", "int8", "--opset", "999"], "opset 999 cannot be written"),
        (["--precision", "int8", "--io", "fp16"], "--io fp16: goes with --precision fp16, not int8"),
        (
            ["--precision", "int8", "--for", "tensorrt"],
            "--precision int8: TensorRT takes eight bits in a form",
        ),
        (["--io", "fp16"], "--io fp16: goes with --precision fp16, not fp32"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_read(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = ["--data", tmp_path / "none"] if "fp32" not in words else []
    assert words in refused(tmp_path / "none.pth", *arguments, *missing, capsys=capsys)
    assert list(tmp_path.iterdir()) == []


# --- Data -------------------------------------------------------------------------------------------


def test_int8_says_what_it_is_calibrated_on(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, err = exported(student, "--precision", "int8", *QUICK, "-o", tmp_path / "a.onnx", capsys=capsys)
    assert "no --degrade: noise:50, which this student was made with" in err
    assert "scikit-image, degraded by noise:50" in err and "say which" not in err
    assert "held-out images (photographs" in out and "degradation: noise:50)" in out
    arguments = [student, "--precision", "int8", "--degrade", "none", *QUICK]
    out, err = exported(*arguments, "-o", tmp_path / "b.onnx", capsys=capsys)
    assert "noise:50" not in err + out and "degradation: none)" in out
    (tmp_path / "mine").mkdir()
    for index in range(3):
        write_image(tmp_path / "mine" / f"{index}.png", torch.rand(3, 40, 40))
    (tmp_path / "mine" / "broken.png").write_bytes(b"no image")
    arguments = [student, "--precision", "int8", "--data", tmp_path / "mine", "--for", "openvino", *QUICK]
    out, err = exported(*arguments, "-o", tmp_path / "c.onnx", capsys=capsys)
    # Of the file in eight bits, which no difference in float32 is asked of.
    assert "largest difference in f32" not in out and "onnxsim" not in out
    assert ("in its default precision" in out) == (openvino_version() is not None)
    assert f"; {len(onnx.load(tmp_path / 'c.onnx').graph.node)} nodes" in out
    assert "noise:50" not in err + out, "a folder of the user's holds inputs, as in all commands"
    assert "1 file skipped" in err and "dB to float32" in out


def test_fp16_is_evaluated_where_options_on_data_are_given(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [checkpoint, "--precision", "fp16", "--input-size", 32]
    out, err = exported(*arguments, "-o", tmp_path / "a.onnx", capsys=capsys)
    assert "PSNR" not in out and "no --data" not in err
    out, err = exported(*arguments, "--degrade", "noise:25", "-o", tmp_path / "b.onnx", capsys=capsys)
    assert "degradation: noise:25)" in out and "using 5 photographs" in err
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_fp32_says_that_it_uses_no_data(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [checkpoint, "--data", tmp_path / "none", "--degrade", "noise:25", "--seed", 1]
    out, err = exported(*arguments, "-o", tmp_path / "a.onnx", capsys=capsys)
    assert "--data, --degrade: not used with --precision fp32\n" in err and "PSNR" not in out


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_bad_data_leave_no_file_behind(
    precision: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [checkpoint, "--precision", precision, "-o", tmp_path / "a.onnx"]
    line = refused(*arguments, "--data", tmp_path / "none", capsys=capsys, code=1)
    assert "none" in line
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


def test_what_cannot_be_evaluated_is_not_published(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DataError("an image is gone")

    monkeypatch.setattr(file, "evaluate", fail)
    arguments = [checkpoint, "--precision", "fp16", "--degrade", "noise:25", "-o", tmp_path / "a.onnx"]
    assert "is gone" in refused(*arguments, capsys=capsys, code=1)
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


# --- Metadata ---------------------------------------------------------------------------------------


def test_students_have_the_name_of_their_folder(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "denoiser-rank8").mkdir()
    inside = student.rename(tmp_path / "denoiser-rank8" / student.name)
    monkeypatch.chdir(inside.parent)
    exported(inside.name, "-o", tmp_path / "a.onnx", capsys=capsys)
    named = inside.rename(tmp_path / "mine.safetensors")
    exported(named, capsys=capsys)
    found = [inspect_onnx(tmp_path / name)["metadata"] for name in ("a.onnx", "mine.onnx")]
    assert [(each["name"], each["rewritten"]) for each in found] == [
        ("denoiser-rank8", "true"),
        ("mine", "true"),
    ]
