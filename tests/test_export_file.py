"""`export` as a command: what it refuses, what it says, and what it never replaces."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from csa2glmha import cli
from tests.conftest import MakeRestormer


@pytest.fixture
def checkpoint(make_restormer: MakeRestormer, tmp_path: Path) -> Path:
    path = tmp_path / "small.pth"
    torch.save(make_restormer().state_dict(), path)
    return path


def complaint(*arguments: object, capsys: pytest.CaptureFixture[str], code: int = 2) -> str:
    """Run `export` with something that must fail; returns its one line."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["csa2glmha", "export", *map(str, arguments)])
        cli.main()
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert ended.value.code == code and lines[-1].startswith("csa2glmha:"), captured.err
    return lines[-1]


# --- The output -------------------------------------------------------------------------------------


def test_the_model_itself_is_never_replaced(checkpoint: Path, tmp_path: Path, capsys) -> None:
    named_onnx = checkpoint.rename(tmp_path / "small.onnx")
    (tmp_path / "link.onnx").symlink_to(named_onnx)
    before = named_onnx.read_bytes()
    for output in ([], ["-o", named_onnx], ["-o", tmp_path / "link.onnx"]):
        line = complaint(named_onnx, *output, "--overwrite", capsys=capsys)
        assert "is the model itself" in line
    assert named_onnx.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.onnx", "small.onnx"]


def test_the_output_is_known_by_its_suffix(checkpoint: Path, tmp_path: Path, capsys) -> None:
    for name in ("small.pth", "out.bin", "out"):
        line = complaint(checkpoint, "-o", tmp_path / name, "--overwrite", capsys=capsys)
        assert ".onnx; add it" in line
    assert [path.name for path in tmp_path.iterdir()] == ["small.pth"]


# --- Choices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp16", "--opset", "18"], "--opset 18: fp16 and int8 need 20 or later"),
        (["--precision", "int8", "--opset", "19"], "--opset 19: fp16 and int8 need 20 or later"),
        (["--precision", "int8", "--opset", "999"], "opset 999 is not supported"),
        (["--precision", "fp16", "--plain"], "--precision fp16: needs the rewrites for deployment"),
        (["--precision", "int8", "--plain"], "leave out --plain"),
        (["--precision", "int8", "--io", "fp16"], "--io fp16: goes with --precision fp16, not int8"),
        (["--io", "fp16"], "--io fp16: goes with --precision fp16, not fp32"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_read(
    arguments: list[str], words: str, tmp_path: Path, capsys
) -> None:
    missing = ["--data", tmp_path / "none"] if "fp32" not in words else []
    assert words in complaint(tmp_path / "none.pth", *arguments, *missing, capsys=capsys)
    assert list(tmp_path.iterdir()) == []
