"""Sweeps: several ranks of one checkpoint, done once each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from csa2glmha import cli
from csa2glmha.errors import UsageError
from csa2glmha.models import build
from csa2glmha.sweep.command import describe_sweep
from csa2glmha.sweep.points import parse_points

TINY = {
    "dim": 16,
    "num_blocks": [1, 1, 1, 1],
    "num_refinement_blocks": 1,
    "heads": [1, 1, 2, 4],
    "norm_bias": False,
}
QUICK = ["--calibration-crops", "4", "--calibration-size", "32", "--input-size", "32", "--crop", "32"]
QUICK += ["--distill-steps", "2", "--degrade", "noise:25"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("restormer", TINY)
    path = tmp_path_factory.mktemp("a model") / "tiny.pth"
    torch.save(model.state_dict(), path)
    return path


def sweep(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["csa2glmha", "sweep", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


@pytest.fixture(scope="module")
def swept(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("out") / "a sweep"
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert sweep(monkeypatch, str(checkpoint), "--ranks", "4,full", *QUICK, "-o", str(output)) == 0
    return output


def test_points_and_files(swept: Path) -> None:
    found = json.loads((swept / "sweep.json").read_text())
    teacher, low, full = found["points"]
    assert [point["label"] for point in found["points"]] == ["teacher", "4", "full"]
    assert low["macs"] < full["macs"] < teacher["macs"]
    assert full["psnr_to_teacher"] > 90 > low["psnr_to_teacher"]
    assert all(point["time_ratio"] > 0 for point in found["points"])
    assert (swept / "rank-4" / "model.onnx").exists() and (swept / "rank-full" / "report.json").exists()
    assert (swept / "pareto.png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in (swept / "pareto.svg").read_text()[:2000]
    report = json.loads((swept / "rank-4" / "report.json").read_text())
    assert report["pareto"]["points"] == found["points"]
    assert "Quality against cost" in (swept / "rank-4" / "report.html").read_text()
    table = describe_sweep(found)
    assert "PSNR to teacher" in table and "full" in table


def test_done_points_are_not_done_again(
    checkpoint: Path, swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (swept / "rank-4" / "student.safetensors").stat().st_mtime_ns
    arguments = [str(checkpoint), "--ranks", "4,8", *QUICK, "--no-latency", "-o", str(swept)]
    assert sweep(monkeypatch, *arguments, "--json") == 0
    out, err = capsys.readouterr()
    assert "rank 4 (1 of 2): done already" in err and "rank 8 (2 of 2): done" not in err
    assert [point["label"] for point in json.loads(out)["points"]] == ["teacher", "4", "8"]
    assert (swept / "rank-4" / "student.safetensors").stat().st_mtime_ns == before


def test_points_of_other_options_are_kept(
    checkpoint: Path, swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkpoint), "--ranks", "4", *QUICK, "--seed", "7", "-o", str(swept)]
    assert sweep(monkeypatch, *arguments) == 1
    assert "made with other options (seed); pass --overwrite" in capsys.readouterr().err


def test_entries_of_the_list() -> None:
    options: dict[str, Any] = {"degrade": "noise:25"}
    points = parse_points("4, FULL,auto:0.75,auto:params=0.9,auto:max-drop=0.05", options)
    assert [point.kind for point in points] == ["uniform", "uniform", "auto", "auto", "auto"]
    assert [str(point.options.budget) for point in points[2:]] == [
        "--macs 0.75",
        "--params 0.9",
        "--max-drop 0.05",
    ]
    assert points[0].options.rank == 4 and points[0].options.degrade == "noise:25"
    assert len({point.folder for point in points}) == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no ranks"),
        ("4,4", "twice"),
        ("4,eight", "not a rank"),
        ("auto", "takes a budget"),
        ("auto:much", "neither a share"),
        ("auto:max-drop=much", "max-drop"),
        ("0", "at least 1"),
    ],
)
def test_entries_that_are_none(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_points(text, {})
