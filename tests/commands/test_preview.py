"""`convert --dry-run`: everything is checked, nothing is written; and which stage of how many is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from csa2glmha.cli import cli
from csa2glmha.commands import preview
from csa2glmha.commands.preview import PlannedStage, Preview, describe_preview, in_words
from csa2glmha.core.stages import Stages
from csa2glmha.inference.memory import training_needs, whole_needs
from tests.conftest import MakeRestormer


@pytest.fixture
def teacher(tmp_path: Path, make_restormer: MakeRestormer) -> Path:
    path = tmp_path / "denoiser.pth"
    torch.save({"params": make_restormer().state_dict()}, path)
    return path


def dry(teacher: Path, *options: str) -> tuple[int, str]:
    small = ("--calibration-size", "32", "--calibration-crops", "2", "--input-size", "48", "--dry-run")
    done = CliRunner().invoke(cli, ["convert", str(teacher), *small, *options], catch_exceptions=True)
    return done.exit_code, done.output if done.exception is None else str(done.exception)


def test_a_dry_run_tells_the_stages_and_writes_nothing(
    teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(teacher.parent)
    code, text = dry(
        teacher, "--rank", "4", "--ffn", "0.5", "--degrade", "noise:25", "--distill-minutes", "7"
    )
    assert code == 0
    assert "restormer, 208.22 k parameters" in text
    assert "k 4, v 4 in 8 layers, 0.5 of the feed-forward networks' channels" in text
    for stage in (
        "1. statistics and initialisation",
        "2. feed-forward widths",
        "3. refit of output projections",
        "4. distillation",
        "5. evaluation",
        "6. ONNX export",
        "7. timing",
    ):
        assert stage in text
    assert next(line for line in text.splitlines() if "4. distillation" in line).split()[-2:] == ["7", "min"]
    assert (
        "output: denoiser-rank4-ffn0.5" in text and "memory: about" in text and "nothing was written" in text
    )
    assert [path.name for path in teacher.parent.iterdir()] == ["denoiser.pth"]


@pytest.mark.parametrize(
    ("sizes", "others"),
    [
        (("--rank", "4"), 3),
        (("--rank", "4", "--ffn", "0.5"), 7),
        (("--rank", "auto", "--macs", "0.9"), 7),
        (("--rank", "auto", "--macs", "0.9", "--ffn", "full"), 3),
    ],
)
def test_a_dry_run_counts_other_methods(
    sizes: tuple[str, ...], others: int, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(teacher.parent)
    monkeypatch.setattr(preview, "_seconds_a_crop", lambda *_: 0.0)  # training alone takes time
    trained = ("--baselines", "--distill-minutes", "10", "--degrade", "noise:25")
    code, text = dry(teacher, *sizes, *trained)
    assert code == 0
    (line,) = (line for line in text.splitlines() if ". other methods" in line)
    assert line.split()[-2:] == [str(10 * others), "min"]


def test_a_lossless_conversion_has_nothing_to_train(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent)
    code, text = dry(teacher, "--rank", "full", "--degrade", "noise:25", "--no-latency")
    assert code == 0
    assert "distillation" not in text and "timing" not in text and "statistics" not in text


def test_a_dry_run_refuses_what_the_conversion_does(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent)
    code, text = dry(teacher, "--degrade", "noise:25", "--no-distill", "--resume")
    assert code != 0 and "--resume: this conversion does not distil" in text


def test_a_dry_run_says_that_results_are_there(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent)
    (teacher.parent / "made").mkdir()
    (teacher.parent / "made" / "report.json").write_text("{}")
    code, text = dry(teacher, "--degrade", "noise:25", "-o", "made")
    assert code == 0
    assert "holds results already" in text
    assert (teacher.parent / "made" / "report.json").read_text() == "{}"


def test_a_dry_run_refuses_what_the_conversion_would(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(teacher.parent)
    code, text = dry(teacher, "--data", "nowhere")
    assert code != 0 and "nowhere" in text
    code, text = dry(teacher, "--rank", "auto", "--macs", "0.01", "--degrade", "noise:25")
    assert code != 0 and "cannot be reached" in text


def test_too_little_memory_is_said_with_what_to_do() -> None:
    text = describe_preview(
        Preview(("network: x",), (PlannedStage("distillation", 90.0),), 20_000_000_000, 8_000_000_000)
    )
    assert "about 20.0 GB of 8.0 GB free; too much" in text and "--batch" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (59, "59 s"), (150, "2 min"), (3600, "60 min"), (9000, "2.5 h")],
)
def test_times_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words


def test_training_takes_more_than_a_run_and_grows_with_the_batch(make_restormer: MakeRestormer) -> None:
    model = make_restormer()
    one, two = (training_needs(model, batch, 64, 64) for batch in (1, 2))
    assert whole_needs(model, 64, 64) < one < two
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_stages_say_which_of_how_many(capsys: pytest.CaptureFixture[str]) -> None:
    stage = Stages(["initialise", "export"])
    with stage("initialise"):
        pass
    with stage("export"):
        pass
    said = capsys.readouterr().err
    assert "[1/2] statistics and initialisation" in said and "[2/2] ONNX export" in said
    assert set(stage.seconds) == {"initialise", "export"}
