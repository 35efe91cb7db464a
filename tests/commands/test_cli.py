"""The command line as a user meets it: results, and one clear line for every mistake."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from csa2glmha import cli
from csa2glmha.checkpoint.student import load
from csa2glmha.distill import StateFolder
from csa2glmha.families.registry import build
from tests.command_line import complaint, run
from tests.conftest import TINY_RESTORMER
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("quick_factors")

TINY = TINY_RESTORMER | {"norm_bias": False}
QUICK = ["--calibration-crops", "2", "--calibration-size", "32", "--input-size", "32", "--no-latency"]
#: Windows has neither limits on file sizes nor signals that a process can be sent and catch.
UNIX = pytest.mark.skipif(sys.platform == "win32", reason="needs limits and signals of Unix")


@pytest.fixture(scope="module")
def converted(checkpoint: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one conversion with distillation, made in a process of its own."""
    output = tmp_path_factory.mktemp("results") / "out folder"
    command = [sys.executable, "-m", "csa2glmha", "convert", checkpoint, "--rank", "3", "--data", photos]
    command += ["--degrade", "noise:25", "--distill-steps", "4", "--crop", "32", "--batch", "2"]
    command += [*QUICK[:-1], "-o", output]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        "parameters" in done.stdout
        and "ONNX latency" in done.stdout
        and "PSNR (RGB) to ground truth" in done.stdout
    )
    assert str(output / "report.html") in done.stdout
    return output


def test_convert_writes_everything(converted: Path, checkpoint: Path) -> None:
    names = {path.name for path in converted.iterdir()}
    files = {"student.safetensors", "model.onnx", "report.json", "report.md", "report.html", "comparison.png"}
    assert names == files | {"distill.jsonl", "README.md"}
    report = json.loads((converted / "report.json").read_text())
    assert report["complexity"]["after"]["macs"] < report["complexity"]["before"]["macs"]
    assert report["distillation"]["after"] >= report["distillation"]["before"]
    assert report["teacher"]["file"] == checkpoint.name
    assert {layer["rank_k"] for layer in report["layers"]} == {3}
    assert report["quality"]["student"]["teacher"]["psnr"] > 20
    assert "| MACs |" in (converted / "report.md").read_text()
    page = (converted / "report.html").read_text(encoding="utf-8")
    shown = report["comparisons"]["images"]
    assert 1 <= len(shown) <= 3 and all(image["name"] in page for image in shown)
    assert page.count("data:image/webp;base64,") == 5 * len(shown)  # with the ground truth


def test_onnx_agrees_with_the_student_file(converted: Path) -> None:
    image = np.random.default_rng(0).random((1, 3, 37, 45), np.float32)
    session = onnxruntime.InferenceSession(converted / "model.onnx", providers=["CPUExecutionProvider"])
    (from_onnx,) = session.run(None, {"input": image})
    with torch.no_grad():
        from_torch = load(converted / "student.safetensors")(torch.from_numpy(image)).numpy()
    assert np.abs(from_onnx - from_torch).max() < 1e-4 * np.ptp(from_torch)


def test_the_model_card_says_how_to_use_the_files(
    converted: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (converted / "README.md").read_text(encoding="utf-8")
    command = re.search(r"```bash\n(.+)\n```", text)
    assert command is not None
    words = shlex.split(command[1])
    assert words[:3] == ["csa2glmha", "convert", checkpoint.name]
    given = dict(itertools.pairwise(words))
    assert (
        given["--rank"] == "3"
        and given["--distill-steps"] == "4"
        and given["--data"].startswith("some photos")
    )
    blocks = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(converted)
    for block in blocks:
        found: dict[str, Any] = {}
        exec(block, found)
        assert found["output"].shape == (1, 3, 32, 32)


def test_an_edited_card_is_kept(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", checkpoint, "--rank", "full", *QUICK, "-o", tmp_path / "out"]
    assert run(*arguments, capsys=capsys)[0] == 0
    card = tmp_path / "out" / "README.md"
    first = card.read_text(encoding="utf-8")
    line = complaint(*arguments, capsys=capsys, code=1)
    assert "'README.md'" in line and "--overwrite" in line
    card.write_text(first.replace("license: other", "license: mit"), encoding="utf-8")
    code, _, err = run(*arguments, "--overwrite", "--seed", 1, capsys=capsys)
    assert code == 0 and "README.md: was written or edited by hand and is kept" in " ".join(err.split())
    assert "license: mit" in card.read_text(encoding="utf-8") and "--seed 0" in first
    card.write_text(first, encoding="utf-8")
    assert run(*arguments, "--overwrite", "--seed", 1, capsys=capsys)[0] == 0
    assert "--seed 1" in card.read_text(encoding="utf-8")


def test_existing_results_are_kept(
    converted: Path, checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in converted.iterdir()}
    arguments = ["convert", checkpoint, "--data", photos, "--degrade", "noise:25", "-o", converted]
    line = complaint(*arguments, capsys=capsys, code=1)
    assert "--overwrite" in line and "student.safetensors" in line
    assert {path: path.read_bytes() for path in converted.iterdir()} == before


def test_inspect(checkpoint: Path, converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("inspect", checkpoint, "--json", "--rank", 4, capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["architecture"] == "restormer" and len(found["layers"]) == 8
    assert found["estimate"]["macs"] < found["macs"]
    code, out, _ = run("inspect", converted / "student.safetensors", capsys=capsys)
    assert code == 0 and "full/3/3" in out


def test_evaluate_every_kind_of_file(
    checkpoint: Path, converted: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    means = {}
    for model in (checkpoint, converted / "student.safetensors", converted / "model.onnx"):
        arguments = ["evaluate", model, "--data", photos, "--degrade", "noise:25", "--json"]
        code, out, err = run(*arguments, "--teacher", checkpoint, capsys=capsys)
        assert code == 0, err
        means[model.suffix] = json.loads(out)
    assert means[".pth"]["teacher"]["mean"]["psnr"] == "inf"
    assert means[".onnx"]["ground_truth"]["mean"]["psnr"] == pytest.approx(
        means[".safetensors"]["ground_truth"]["mean"]["psnr"], abs=1e-3
    )
    assert len(means[".pth"]["ground_truth"]["per_image"]) == 3


def test_distill_and_export(
    checkpoint: Path, converted: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    better = tmp_path / "better.safetensors"
    arguments = ["distill", converted / "student.safetensors", "--teacher", checkpoint, "--data", photos]
    arguments += ["--degrade", "noise:25", "--distill-steps", 3, "--crop", 32, "--calibration-size", 32]
    code, out, err = run(*arguments[:-2], "-o", better, capsys=capsys)
    assert code == 0 and "steps: 3" in out, err
    assert load(better).hyperparameters == load(checkpoint).hyperparameters
    code, out, err = run("export", better, "-o", tmp_path / "better.onnx", capsys=capsys)
    assert code == 0 and (tmp_path / "better.onnx").is_file(), err
    line = complaint("export", better, "-o", tmp_path / "better.onnx", capsys=capsys, code=1)
    assert "--overwrite" in line


def test_full_rank_is_lossless(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "full"
    code, _, err = run("convert", checkpoint, "--rank", "full", *QUICK, "-o", output, capsys=capsys)
    assert code == 0, err
    assert "no --data" in err and "no --degrade" in err
    image = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        difference = load(output / "student.safetensors")(image) - load(checkpoint)(image)
    assert difference.abs().max() < 1e-4
    report = json.loads((output / "report.json").read_text())
    assert report["complexity"]["after"]["macs"] < report["complexity"]["before"]["macs"]
    assert "distillation" not in report


def test_recipe_sets_options_and_the_command_line_wins(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "rank: 2\nrank_q: 3\ndistill: false\nlatency: false\ninput_size: 32\n"
        "calibration_crops: 2\ncalibration_size: 32\ndegrade: noise:10\n"
    )
    output = tmp_path / "out"
    arguments = ["convert", checkpoint, "--recipe", recipe, "--rank", 4, "--data", photos, "-o", output]
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 0, err
    layers = json.loads((output / "report.json").read_text())["layers"]
    assert {(layer["rank_q"], layer["rank_k"]) for layer in layers} == {(3, 4)}


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["--rank", "0"], 2, "at least 1"),
        (["--rank", "-3"], 2, "at least 1"),
        (["--rank", "999"], 2, "above the"),
        (["--rank", "eight"], 2, "--rank eight"),
        (["--rank-q", "1.5"], 2, "--rank-q 1.5"),
        (["--attention", "linear"], 2, "'--attention': 'linear' is not one of"),
        (["--degrade", "fog:3"], 2, "fog:3"),
        (["--device", "cuda:77"], 2, "cuda:77"),
        (["--device", "toaster"], 2, "toaster"),
        (["--batch", "none"], 2, "--batch none"),
        (["--data", "/no/such/folder"], 1, "/no/such/folder"),
        (["--targets", "/tmp"], 2, "--targets needs --data"),
        (["--recipe", "/no/such/recipe.yaml"], 2, "/no/such/recipe.yaml"),
        (["--rnak", "8"], 2, "--rank"),
    ],
)
def test_bad_options(
    arguments: list[str],
    code: int,
    expected: str,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    line = complaint("convert", checkpoint, "-o", output, *arguments, capsys=capsys, code=code)
    assert expected in line
    assert not output.exists(), "nothing is created for a request that fails its checks"


def test_bad_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.pth" in complaint("inspect", tmp_path / "none.pth", capsys=capsys, code=1)
    pointer = tmp_path / "pointer.pth"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in complaint("convert", pointer, capsys=capsys, code=1)
    other = tmp_path / "other.pth"
    torch.save({"conv1.weight": torch.zeros(2, 2, 3, 3), "fc.bias": torch.zeros(2)}, other)
    line = complaint("convert", other, capsys=capsys, code=1)
    assert "other.pth" in line and "conv1.weight" in line and "restormer" in line
    empty = tmp_path / "images"
    empty.mkdir()
    (empty / "fake.png").write_text("not an image")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"nonsense")
    arguments = ["evaluate", broken, "--degrade", "noise:25", "--data", empty]
    assert "broken.onnx" in complaint(*arguments, capsys=capsys, code=1)


def test_folder_without_images_is_counted(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fake.png").write_text("not an image")
    arguments = [
        "convert",
        checkpoint,
        "--data",
        tmp_path / "data",
        "--degrade",
        "noise:25",
        "-o",
        tmp_path / "out",
    ]
    line = complaint(*arguments, capsys=capsys, code=1)
    assert "1 file" in line and "skipped" in line


def test_evaluate_says_first_that_a_folder_is_missing(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = complaint("evaluate", checkpoint, "--data", tmp_path / "nowhere", capsys=capsys, code=1)
    assert "nowhere' does not exist; give a folder with images" in line
    line = complaint("evaluate", checkpoint, "--data", tmp_path, capsys=capsys, code=2)
    assert "nothing to compare with" in line


def test_converting_a_student_is_refused(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = complaint("convert", converted / "student.safetensors", capsys=capsys, code=2)
    assert "student already" in line


def test_distill_with_another_teacher_is_refused(
    converted: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(5)
    stranger = tmp_path / "stranger.pth"
    torch.save(build("restormer", TINY).state_dict(), stranger)
    arguments = ["distill", converted / "student.safetensors", "--teacher", stranger, "--data", photos]
    assert "SHA-256" in complaint(*arguments, capsys=capsys, code=2)


def test_output_that_cannot_be_written(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("precious")
    complaint("convert", checkpoint, "-o", file, *QUICK, capsys=capsys, code=1)
    assert file.read_text() == "precious"


@UNIX
def test_full_disk_leaves_nothing_half_written(
    checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit on file sizes stands in for the full disk: writes fail half-way just the same."""
    resource = pytest.importorskip("resource")
    output = tmp_path / "out"
    arguments = ["convert", checkpoint, "--rank", "3", "--data", photos, "--degrade", "noise:25"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        line = complaint(*arguments, "--no-distill", *QUICK, "-o", output, capsys=capsys, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "student.safetensors" in line
    assert not output.exists()


@UNIX
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_leaves_nothing_half_written(
    number: signal.Signals, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "csa2glmha", "convert", checkpoint, "--rank", "3", "--data", photos]
    command += ["--degrade", "noise:25", "--distill-steps", "100000", "--crop", "32", *QUICK, "-o", output]
    log = tmp_path / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env={**os.environ, "COLUMNS": "80"})
        # The state that is saved before the first step: from there on, a signal ends the step that it meets.
        begun = StateFolder(output / "state", {})
        wait_until(lambda: begun.steps() != [], lambda: process.poll() is None, log.read_text)
        process.send_signal(number)
        code = process.wait()
    text = log.read_text()
    assert code == 130, text
    assert "Traceback" not in text and "interrupted" in text.splitlines()[-1]
    assert "--resume" in text.splitlines()[-1]
    assert {entry.name for entry in output.iterdir()} == {"distill.jsonl", "state"}


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ([], ["convert"], ["inspect"], ["distill"], ["export"], ["evaluate"], ["demo"]):
        code, out, _ = run(*command, "--help", capsys=capsys)
        assert code == 0 and "Usage" in out
    assert run("--version", capsys=capsys)[1].startswith("csa2glmha")


def test_command_line_starts_without_pytorch() -> None:
    probe = "import sys, csa2glmha.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_what_libraries_find_odd_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "run_safely", lambda _: warnings.warn("Tag data larger than file", stacklevel=1))
    assert run("--version", capsys=capsys)[0] == 0
    assert not recwarn.list
