"""--weights: which of the networks in a checkpoint every command takes, and what is kept of the choice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from csa2glmha.checkpoint import read_checkpoint, write_safetensors
from csa2glmha.cli import cli
from csa2glmha.commands.convert import convert
from csa2glmha.commands.distill import distill_file
from csa2glmha.commands.evaluate import evaluate_file
from csa2glmha.commands.run import run_files
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import OutputError, UsageError
from csa2glmha.data.images import write_image
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.report.stored import parse_report, write_record
from csa2glmha.search.plan import sensitivity_cache
from csa2glmha.sweep.folders import finished_report
from csa2glmha.sweep.points import parse_points
from tests.pages import example_report


@pytest.fixture
def checkpoint(tmp_path: Path, tiny_restormer: Restormer) -> Path:
    """Averaged weights that restore, and others whose output is their input."""
    state = tiny_restormer.state_dict()
    identity = state | {"output.weight": torch.zeros_like(state["output.weight"])}
    torch.save({"params": identity, "params_ema": state}, tmp_path / "two.pth")
    return tmp_path / "two.pth"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / "x.png"
    write_image(path, torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0)))
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


OPTIONS: dict[str, Any] = {
    "rank": "full", "latency": False, "input_size": 24, "calibration_crops": 2, "calibration_size": 16,
}  # fmt: skip


@pytest.mark.parametrize("weights", [None, "params", "params_ema"])
def test_inspect(checkpoint: Path, weights: str | None) -> None:
    chosen = () if weights is None else ("--weights", weights)
    found = json.loads(invoke("inspect", checkpoint, "--json", *chosen).output)
    assert found["weights"] == (weights or "params_ema")
    assert found["other_weights"] == ["params_ema" if weights == "params" else "params"]
    text = invoke("inspect", checkpoint, *chosen).output
    kind = (
        "'params'; left out 'params_ema'" if weights == "params" else "'params_ema' (averaged weights); left"
    )
    assert f"note: opened {kind}" in text


def test_run_takes_and_says_them(
    checkpoint: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_files(checkpoint, [image], tmp_path / "same", options=make_options(weights="params"))
    assert "opened 'params'; left out 'params_ema'" in capsys.readouterr().err
    run_files(checkpoint, [image], tmp_path / "other")
    assert "opened 'params_ema' (averaged weights)" in capsys.readouterr().err
    assert (tmp_path / "same" / "x.png").read_bytes() != (tmp_path / "other" / "x.png").read_bytes()


def test_evaluate(checkpoint: Path, image: Path) -> None:
    data = {"data": image.parent, "degrade": "noise:25"}

    def psnr(found: dict[str, Any], reference: str) -> float:
        return float(found[reference]["mean"]["psnr"])

    same = evaluate_file(checkpoint, make_options(weights="params", **data), None, None)
    assert psnr(same, "ground_truth") == psnr(same, "input")
    other = evaluate_file(checkpoint, make_options(**data), None, None)
    assert psnr(other, "ground_truth") != psnr(other, "input")
    # With a teacher it is the teacher's that are chosen.
    against = evaluate_file(checkpoint, make_options(weights="params", **data), checkpoint, None)
    assert psnr(against, "ground_truth") == psnr(other, "ground_truth")
    assert psnr(against, "teacher") < 60
    against = evaluate_file(checkpoint, make_options(weights="params_ema", **data), checkpoint, None)
    assert psnr(against, "teacher") == float("inf")


def test_what_is_not_there_is_a_usage_error(checkpoint: Path, image: Path, tmp_path: Path) -> None:
    for command in (
        ["convert", checkpoint, "--rank", "full"],
        ["inspect", checkpoint],
        ["analyze", checkpoint, "--data", image.parent],
        ["export", checkpoint, "-o", tmp_path / "x.onnx"],
        ["evaluate", checkpoint, "--data", image.parent, "--degrade", "noise:25"],
        ["run", checkpoint, image, "-o", tmp_path / "out"],
        ["bench", checkpoint],
        ["sweep", checkpoint, "--ranks", "4"],
    ):
        error = invoke(*command, "--weights", "ema").exception
        assert isinstance(error, UsageError), command
        assert "no network of that name; it has 'params', 'params_ema'" in str(error), command


def test_a_student_has_one_set(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    write_safetensors(path, {"a": torch.ones(1)}, {"format": "csa2glmha-student"})
    with pytest.raises(UsageError, match="is a student and has one set; leave it out"):
        read_checkpoint(path, "params")
    with pytest.raises(UsageError, match="is an ONNX file and has one set"):
        run_files(tmp_path / "x.onnx", [], tmp_path, options=make_options(weights="params"))


def test_a_conversion_keeps_its_choice(checkpoint: Path, image: Path, tmp_path: Path) -> None:
    write_image(image.with_name("y.png"), torch.rand(3, 24, 24))
    data = {"data": image.parent, "degrade": "noise:25"}
    made = convert(checkpoint, output=tmp_path / "out", weights="params", **data, **OPTIONS)
    assert made.report["teacher"]["weights"] == "params"
    assert made.report["teacher"]["notes"] == ["opened 'params'; left out 'params_ema'"]
    student = tmp_path / "out" / "student.safetensors"
    metadata = read_checkpoint(student).metadata
    assert metadata["teacher_weights"] == "params"
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(made.student(x), x)
    for page in ("report.md", "report.html"):
        assert "left out" in (tmp_path / "out" / page).read_text(encoding="utf-8")

    # What is made of the student later takes the same weights of its teacher without being told,
    against = evaluate_file(student, make_options(**data), checkpoint, None)
    assert float(against["teacher"]["mean"]["psnr"]) > 90
    # and no others.
    with pytest.raises(UsageError, match=r"--weights params_ema: .* was made from params; leave it out"):
        distill_file(student, checkpoint, None, False, make_options(weights="params_ema", **data))
    del metadata["teacher_weights"]
    write_safetensors(student, read_checkpoint(student).state_dict, metadata)
    with pytest.raises(UsageError, match=r"holds params_ema, params, and .* does not say which"):
        distill_file(student, checkpoint, None, False, make_options(**data))


def test_what_was_measured_of_other_weights_is_not_used_again(checkpoint: Path, tmp_path: Path) -> None:
    def identity(weights: str | None) -> Mapping[str, Any]:
        options = make_options(weights=weights)
        return sensitivity_cache(tmp_path, read_checkpoint(checkpoint, weights), options).identity

    assert identity("params") != identity("params_ema") == identity(None)


def test_a_sweep_does_not_take_points_of_other_weights(checkpoint: Path, tmp_path: Path) -> None:
    (point,) = parse_points("4", {"distill": False})
    chosen, other = (read_checkpoint(checkpoint, name) for name in ("params_ema", "params"))
    values = example_report() | {"options": point.options.model_dump(mode="json")}
    values["teacher"] |= {"sha256": chosen.sha256, "weights": chosen.weights}
    report = parse_report(values)
    write_record(tmp_path, report)
    for name in ("student.safetensors", "model.onnx"):
        (tmp_path / name).touch()
    assert finished_report(tmp_path, point, chosen, {}) == report
    with pytest.raises(OutputError, match=r"other options \(weights\)"):
        finished_report(tmp_path, point, other, {})
