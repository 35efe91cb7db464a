"""The command lines of all README files run as they stand, on a tiny denoiser.

A block of shell lines whose first line is a comment that begins "# needs" is for data or machines that are
not here. What a training costs is cut down, and nothing else.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner

import csa2glmha
from csa2glmha import cli as command_line
from csa2glmha.cli import cli
from csa2glmha.config import options as all_options
from csa2glmha.config.options import ConvertOptions
from csa2glmha.search import choices
from csa2glmha.sweep import points as sweep_points
from tests.conftest import MakeRestormer
from tests.networks import builders

pytestmark = pytest.mark.usefixtures("quick_factors")

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        *ROOT.glob("*/README.md"),
        *ROOT.glob("csa2glmha/*/README.md"),
        *ROOT.glob(".github/*.md"),
    ]
)
#: Lines that are not ours to run here: how the project is set up and tested, and the shell's own.
OTHERS = (
    "make",
    "source",
    "pip",
    "git",
    "cd",
    ".venv/bin",
    "eval",
    "CSA2GLMHA_",
    "python -m build",
    "python recipes",
)
CHEAP: dict[str, Any] = {
    "calibration_crops": 2,
    "calibration_size": 16,
    "crop": 16,
    "batch": 1,
    "distill_steps": 1,
    "input_size": 32,
    "latency": False,
}


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def lines(page: Path) -> Iterator[str]:
    """The shell lines of a page that are to be run."""
    for block in blocks(page, "sh"):
        if block.startswith("# needs"):
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if line.strip() and not line.startswith("#"):
                yield line


def ours(page: Path) -> list[str]:
    return [line for line in lines(page) if line.startswith("csa2glmha ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_line_is_run_or_known(page: Path) -> None:
    for line in lines(page):
        assert line.startswith(("csa2glmha ", *OTHERS)), line


def test_the_makefile_has_what_the_pages_name() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for line in lines(page):
            for target in re.findall(r"(?:^| )make ([a-z-]+)", line):
                assert f"\n{target}:" in makefile


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_restormer: MakeRestormer) -> Path:
    """A folder with checkpoints, code of the user's and photographs, as the pages suppose."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copy(builders.FILE, folder / "archs.py")
    torch.save(builders.build(dim=32).state_dict(), folder / "weights.pth")
    torch.save({"params": make_restormer().state_dict()}, folder / "denoiser.pth")
    (folder / "photos").mkdir()
    pixels = np.random.default_rng(0)
    for index in range(4):
        small = pixels.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / "photos" / f"{index}.png"), cv2.resize(small, (48, 40)))
    (folder / "recipes").symlink_to(ROOT / "recipes", target_is_directory=True)
    return folder


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every conversion is a short one."""
    make = all_options.make_options

    def shortened(**values: Any) -> ConvertOptions:
        values.pop("distill_minutes", None)
        budget = {} if isinstance(values.get("latency"), float) else {"latency": False}
        return make(**(values | {name: value for name, value in CHEAP.items() if name != "latency"} | budget))

    for module in (command_line, sweep_points):
        monkeypatch.setattr(module, "make_options", shortened)
    # A search measures every choice of every layer: some of each kind will do.
    monkeypatch.setattr(choices, "KEY_RANKS", (8,))
    monkeypatch.setattr(choices, "QUERY_AND_KEY_RANKS", ())
    monkeypatch.setattr(choices, "VALUE_RANKS", (8, 4, 2))


def run_line(line: str, place: Path, changed: Callable[[list[str]], list[str]] = list) -> None:
    words = changed(shlex.split(line, comments=True)[1:])
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, (line, done.output)


def repeatable(words: list[str]) -> list[str]:
    """Pages tell the same story more than once; results of the last one are replaced."""
    replaces = {"convert", "distill", "export", "analyze", "run"} & {words[0]} and "--resume" not in words
    seconds = ["--seconds", "0", "--size", "32"] if words[0] == "bench" else []
    timing = ["--no-latency"] if words[0] == "sweep" else []
    return words + (["--overwrite"] if replaces else []) + seconds + timing


@pytest.mark.usefixtures("cheap")
def test_the_pages_tell_a_story_that_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    told = [line for page in (ROOT / "README.md", ROOT / "recipes" / "README.md") for line in ours(page)]
    assert len(told) > 10
    done = set()
    for line in told:
        # The first of a pair is what an interrupted run leaves; its repetition has nothing to resume.
        if line in done or "--resume" in line:
            continue
        run_line(line, place, repeatable)
        done.add(line)


def test_python_on_the_first_page_runs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code = "\n".join(blocks(ROOT / "README.md", "python"))
    shortened = code.replace('degrade="noise:25")', 'degrade="noise:25", overwrite=True, **cheap)')
    assert shortened != code
    batches = [torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    found: dict[str, Any] = {
        "cheap": CHEAP,
        "network": csa2glmha.load("denoiser.pth"),
        "batches": batches,
    }
    exec(shortened, found)
    assert found["student"](batches[0]).shape == batches[0].shape
    assert found["restored"].shape == (1, 3, 200, 300)
