"""Faults of machines and hands: full disks, lost outputs, two at once, kills."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, NoReturn

import pytest

from csa2glmha.checkpoint import write_safetensors
from csa2glmha.checkpoint.student import load, load_model, save_student, student_metadata
from csa2glmha.commands import convert as pipeline
from csa2glmha.compression.exporting import TimeFiles
from csa2glmha.compression.files import replaced
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import OutputError
from csa2glmha.core.files import sha256_of
from csa2glmha.core.locks import exclusive_file, exclusive_folder
from csa2glmha.distill import StateFolder
from csa2glmha.distill.job import DistillJob
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.reading.layers import attention_layers
from tests.command_line import run

pytestmark = pytest.mark.usefixtures("quick_factors")

# --- numbers


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "m", "i", "-o", "o", "--memory", "nan"),
        ("run", "m", "i", "-o", "o", "--memory", "inf"),
        ("run", "m", "i", "-o", "o", "--memory", "1e300"),
        ("convert", "m", "--rank", "auto", "--latency", "nan"),
        ("convert", "m", "--rank", "auto", "--macs", "1e999"),
        ("bench", "m", "--seconds", "nan"),
        ("bench", "m", "--seconds", "inf"),
    ],
)
def test_numbers_that_are_none(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(*arguments, capsys=capsys)
    assert code == 2 and out == "" and err.startswith("csa2glmha: ") and err.count("\n") == 1
    assert arguments[-2] in err and arguments[-1].lower()[:2] in err.lower()


# --- conversions


QUICK = ["--calibration-crops", 2, "--calibration-size", 32, "--input-size", 32]
TRAINING = ["--degrade", "noise:25", "--distill-steps", 4, "--crop", 32, "--state-minutes", 0]
RESULTS = {"README.md", "student.safetensors", "report.json", "report.md", "report.html", "comparison.png"}


@pytest.fixture
def convert(
    checkpoint: Path, photos: Path, tmp_path: Path, no_export: None, capsys: pytest.CaptureFixture[str]
) -> Any:
    """Run convert to ``tmp_path / "out"``; exit code and the two streams."""

    def command(*more: object, training: bool = True) -> tuple[int, str, str]:
        distil = TRAINING if training else ["--degrade", "noise:25", "--no-distill"]
        arguments = ["convert", checkpoint, "--rank", 3, "--data", photos, *distil, *QUICK]
        return run(*arguments, "-o", tmp_path / "out", *more, capsys=capsys)

    return command


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def no_space(*arguments: object, **options: object) -> NoReturn:
    raise OutputError("cannot write '/tmp/csa2glmha-1/teacher.onnx': No space left") from OSError(
        errno.ENOSPC, "No space left"
    )


def test_a_full_temporary_folder_costs_the_latency_and_no_more(
    convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = replaced(TimeFiles(no_space), pipeline.CONVERSION_STAGES)
    monkeypatch.setattr(pipeline, "CONVERSION_STAGES", stages)
    code, out, err = convert(training=False)
    assert code == 0 and "not timed: cannot write '/tmp/csa2glmha-1/teacher.onnx': No space left" in err
    assert "ONNX latency" not in out and names(tmp_path / "out") == RESULTS
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "latency_ms" not in report and "No space left" in report["latency_missing"]
    assert "Time was not measured: cannot write" in (tmp_path / "out" / "report.md").read_text()
    assert code == 0


@pytest.mark.parametrize("holder", ["convert", "sweep", "run", "analyze", "export", "distill"])
def test_the_second_command_is_refused(
    holder: str, checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, data = tmp_path / "out", ["--data", photos, "--degrade", "noise:25"]
    arguments: dict[str, list[Any]] = {
        "convert": [checkpoint, *data, "-o", out],
        "sweep": [checkpoint, *data, "-o", out],
        "run": [checkpoint, photos, "-o", out],
        "analyze": [checkpoint, *data, "-o", out],
        "export": [checkpoint, "-o", out / "a.onnx"],
        "distill": [checkpoint, "--teacher", checkpoint, *data, "-o", out / "a.safetensors"],
    }
    file = {"export": "a.onnx", "distill": "a-state"}.get(holder)
    with exclusive_folder(out) if file is None else exclusive_file(out / file):
        code, printed, err = run(holder, *arguments[holder], capsys=capsys)
    assert code == 1 and printed == "" and "is in use: another csa2glmha" in err.splitlines()[-1]
    assert not out.exists()


@pytest.mark.parametrize("command", ["convert", "sweep"])
@pytest.mark.parametrize("inside", ["", "results", "results/deep"])
def test_an_output_among_the_images_is_refused(
    command: str,
    inside: str,
    checkpoint: Path,
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = names(photos)
    arguments = [command, checkpoint, "--data", photos, "--degrade", "noise:25", "-o", photos / inside]
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2 and "is inside --data" in err.splitlines()[-1]
    assert names(photos) == before


@pytest.mark.parametrize("below", ["", "deeper"])
def test_tensorboard_below_a_file_is_refused_first(convert: Any, tmp_path: Path, below: str) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "taken").write_text("precious")
    code, _, err = convert("--tensorboard", tmp_path / "taken" / below)
    assert code == 2 and "--tensorboard" in err.splitlines()[-1] and "measuring" not in err
    assert names(tmp_path) == {"taken"}


@pytest.mark.parametrize("file", ["student.safetensors", "report.html"])
def test_a_disk_that_is_full_at_any_write_loses_nothing(
    file: str, convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two states fill it: with one of them gone there is room."""
    out, replace = tmp_path / "out", Path.replace
    states = StateFolder(out / "state", {})
    seen: list[int] = []

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == file:
            seen.append(len(states.steps()))
            if seen[-1] > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    code, _, err = convert("--no-latency")
    assert code == 0, err
    assert seen[:2] == [2, 1] and names(out) == RESULTS | {"distill.jsonl"}


def test_a_disk_that_stays_full_keeps_the_state_and_says_so(
    convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, replace = tmp_path / "out", Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == "report.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        code, _, err = convert("--no-latency")
    last = err.splitlines()[-1]
    assert code == 1 and "report.json" in last and "No space left on device" in last
    assert "the state of step 4 stays in" in last and "--resume" in last
    assert StateFolder(out / "state", {}).steps() == [4]
    code, _, err = convert("--no-latency", "--resume")
    assert code == 0 and "resuming from step 4" in err
    assert names(out) == RESULTS | {"distill.jsonl"}


@pytest.mark.parametrize("kind", ["log", "state"])
def test_links_in_the_output_are_not_written_through(kind: str, convert: Any, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    out = tmp_path / "out"
    out.mkdir()
    if kind == "state":
        states = precious / "step-00000100"
        states.mkdir(parents=True)
        (states / "state.json").write_text('{"format": "csa2glmha-state"}')
        (out / "state").symlink_to(precious)
    else:
        precious.write_text("precious")
        (out / "distill.jsonl").symlink_to(precious)
    before = {path: path.read_bytes() for path in tmp_path.glob("precious/**/*.json")}
    code, _, err = convert("--no-latency", "--overwrite")
    assert code == 0, err
    assert precious.is_dir() or precious.read_text() == "precious"
    assert {path: path.read_bytes() for path in tmp_path.glob("precious/**/*.json")} == before
    assert not (out / "distill.jsonl").is_symlink()
    assert json.loads((out / "distill.jsonl").read_text().splitlines()[-1])["event"] == "end"


@pytest.mark.parametrize("command", ["convert", "distill"])
def test_the_checkpoint_is_not_replaced(
    command: str, checkpoint: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = load(checkpoint)
    path = tmp_path / "student.safetensors"
    write_safetensors(path, teacher.state_dict(), {})
    before = path.read_bytes()
    data = ["--data", photos, "--degrade", "noise:25", "--overwrite"]
    if command == "convert":
        arguments = ["convert", path, "--rank", 3, *data, "-o", tmp_path]
    else:
        student, _ = initialise_student(
            teacher,
            plan_layers(attention_layers(teacher), Ranks(k=None, v=None)),
            None,
        )
        other = tmp_path / "other.safetensors"
        save_student(other, student, student_metadata(student, sha256_of(path), 0, {}))
        arguments = ["distill", other, "--teacher", path, *data, "-o", path]
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2 and "student.safetensors' is an input" in err.splitlines()[-1]
    assert path.read_bytes() == before


def test_an_output_folder_that_is_deleted_meanwhile(
    convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The student is worth more than a tidy disk: the folder is made again."""
    train = DistillJob.run

    def deleting(self: Any, *arguments: Any) -> Any:
        result = train(self, *arguments)
        shutil.rmtree(tmp_path / "out")
        return result

    monkeypatch.setattr(DistillJob, "run", deleting)
    code, _, err = convert("--no-latency")
    assert code == 0, err
    assert names(tmp_path / "out") == RESULTS


@pytest.mark.parametrize("moment", ["old files gone", "student written"])
def test_killed_at_the_end_no_two_results_are_mixed(
    moment: str, convert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier result of seed 0 is replaced by one of seed 1; the process dies on the way."""
    out, replace = tmp_path / "out", Path.replace
    assert convert("--no-latency", training=False)[0] == 0
    target = "student.safetensors" if moment == "old files gone" else "comparison.png"

    def dying(self: Path, final: Path) -> Path:
        if Path(final).name == target:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, final)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Path, "replace", dying)
        try:
            convert("--no-latency", "--overwrite", "--seed", 1, training=False)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    made = load_model(out / "student.safetensors").checkpoint.metadata
    assert made["seed"] == ("0" if moment == "old files gone" else "1")
    report = out / "report.json"
    assert not report.exists()
    code, _, err = convert("--no-latency", "--overwrite", "--seed", 1, training=False)
    assert code == 0, err
    assert names(out) == RESULTS and json.loads(report.read_text())["seed"] == 1
