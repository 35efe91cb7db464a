"""Every message in the table of recipes/README.md is brought about here, and has the words of the table."""

from __future__ import annotations

import inspect
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from csa2glmha.bench import compare
from csa2glmha.bench.rounds import Patience, Timings
from csa2glmha.cli import cli
from csa2glmha.core.ending import run_safely
from csa2glmha.core.locks import exclusive_folder
from csa2glmha.data import write_image
from tests.conftest import MakeRestormer

pytestmark = pytest.mark.usefixtures("quick_factors")

PAGE = Path(__file__).parents[2] / "recipes" / "README.md"
QUICK = ["--calibration-crops", "2", "--calibration-size", "16", "--crop", "16", "--batch", "1"]
QUICK += ["--distill-steps", "1", "--input-size", "32", "--no-latency"]


def messages() -> list[str]:
    """Of the table, in its order; a row may have several."""
    section = PAGE.read_text(encoding="utf-8").split("\n## Troubleshooting\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    return [message for line in lines for message in re.findall(r"`([^`]+)`", line.split(" | ")[0])]


def pattern(message: str) -> re.Pattern[str]:
    """What the message may be: its words, with anything in the place of three dots."""
    return re.compile(".*".join(map(re.escape, message.split("..."))))


def command(*words: str | Path) -> int:
    """Run a command as `csa2glmha` does; returns its exit code."""
    return run_safely(lambda: cli.main(list(map(str, words)), prog_name="csa2glmha", standalone_mode=False))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_restormer: MakeRestormer) -> Path:
    """A folder with a checkpoint, photographs, and what a conversion of them makes."""
    folder = tmp_path_factory.mktemp("place")
    torch.save({"params": make_restormer().state_dict()}, folder / "denoiser.pth")
    pixels = torch.Generator().manual_seed(0)
    for name in ("inputs", "targets"):
        (folder / name).mkdir()
        for index in range(3):
            write_image(folder / name / f"{index}.png", torch.rand(3, 40, 48, generator=pixels))
    assert command("convert", folder / "denoiser.pth", *QUICK, "-o", folder / "made") == 0
    return folder


# --- how each message comes about, in a folder as above


def changed_network() -> None:
    state = torch.load("denoiser.pth")["params"]
    torch.save({name: tensor for name, tensor in state.items() if name != "output.weight"}, "changed.pth")
    command("inspect", "changed.pth")


def renamed_layer() -> None:
    state = torch.load("denoiser.pth")["params"]
    state["extra.weight"] = torch.zeros(1)
    torch.save(state, "more.pth")
    command("inspect", "more.pth")


def object_in_the_file() -> None:
    torch.save({"params": torch.load("denoiser.pth")["params"], "share": Fraction(1, 2)}, "object.pth")
    command("inspect", "object.pth")


def two_networks(make_restormer: MakeRestormer) -> None:
    torch.save(
        {"derain": make_restormer().state_dict(), "deblur": make_restormer(seed=1).state_dict()}, "two.pth"
    )
    command("inspect", "two.pth")


def student_again() -> None:
    command("convert", "made/student.safetensors", "-o", "again")


def no_pair() -> None:
    Path("renamed").mkdir(exist_ok=True)
    for index, name in enumerate("abc"):
        shutil.copy(f"targets/{index}.png", f"renamed/{name}.png")
    command("evaluate", "made/model.onnx", "--data", "inputs", "--targets", "renamed")


def one_without_a_pair() -> None:
    Path("fewer").mkdir(exist_ok=True)
    for index in range(2):
        shutil.copy(f"targets/{index}.png", f"fewer/{index}.png")
    command("evaluate", "made/model.onnx", "--data", "inputs", "--targets", "fewer")


def busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    measure = compare.time_in_turns

    def unsteady(*arguments: Any) -> Timings:
        return replace(measure(*arguments), converged=False)

    monkeypatch.setattr(compare, "time_in_turns", unsteady)
    model = Path("made/model.onnx")
    compare.compare_files({"a": model, "b": model}, (1, 3, 16, 16), patience=Patience(seconds=0))


def no_memory() -> None:
    run_safely(lambda: torch.empty(2**60))


def large_image() -> None:
    write_image(Path("large.png"), torch.rand(3, 256, 256))
    command("run", "made/student.safetensors", "large.png", "-o", "restored", "--memory", "0.001")


def results_there() -> None:
    command("convert", "denoiser.pth", *QUICK, "-o", "made")


def file_there() -> None:
    command("export", "made/student.safetensors", "-o", "made/model.onnx")


def folder_in_use() -> None:
    with exclusive_folder(Path("made")):
        command("convert", "denoiser.pth", *QUICK, "-o", "made", "--overwrite")


def interrupted_run() -> None:
    Path("stopped/state/step-00000008").mkdir(parents=True, exist_ok=True)
    command("convert", "denoiser.pth", *QUICK, "-o", "stopped")


def small_budget() -> None:
    command("convert", "denoiser.pth", *QUICK, "--rank", "auto", "--macs", "0.01", "-o", "small")


def fault_of_ours() -> None:
    run_safely(lambda: np.zeros(3).reshape(2, 2))


WAYS: dict[str, Callable[..., None]] = {
    "not a supported architecture: ...": changed_network,
    "keys do not fit: ...": renamed_layer,
    "it holds the object ..., which weights do not need": object_in_the_file,
    "it holds ... networks: ...; choose one with --weights": two_networks,
    "is a student already": student_again,
    "no image in ... with a target in ...": no_pair,
    "skipped (... no target of that name)": one_without_a_pair,
    "ratios of times are known to ... only": busy_machine,
    "out of memory": no_memory,
    "takes ... GB, there are ...; give more --memory": large_image,
    "already holds ...: pass --overwrite": results_there,
    "already exists: pass --overwrite": file_there,
    "is in use: another csa2glmha is writing there": folder_in_use,
    "holds the state of an interrupted run": interrupted_run,
    "cannot be reached; the smallest is": small_budget,
    "unexpected ...; this should not happen": fault_of_ours,
}


def test_every_message_of_the_table_is_here() -> None:
    assert messages() == list(WAYS)


@pytest.mark.parametrize("message", WAYS)
def test_the_table_has_the_words_that_are_printed(
    message: str,
    place: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.delenv("CSA2GLMHA_DEBUG", raising=False)
    capsys.readouterr()
    way = WAYS[message]
    way(**{name: request.getfixturevalue(name) for name in inspect.signature(way).parameters})
    said = capsys.readouterr().err
    assert any(pattern(message).search(line) for line in said.splitlines()), said
