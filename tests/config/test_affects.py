"""Every option says what it affects, and each identity follows from that."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from csa2glmha.checkpoint import read_checkpoint
from csa2glmha.cli import cli
from csa2glmha.config.affects import Affects, Options, affected_by, options_that_affect
from csa2glmha.config.options import ConvertOptions, make_options, migrated, read_recipe
from csa2glmha.core.ending import run_safely
from csa2glmha.data.images import MemoryImages
from csa2glmha.data.sources import ImageData
from csa2glmha.distill.job import identity_of
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.search.plan import sensitivity_cache
from csa2glmha.sweep.folders import other_options

#: Another value than the default, where a number one higher, the other choice or the other truth is none.
OTHER: dict[str, Any] = {
    "ffn": 0.5,
    "macs": 0.7,
    "params": 0.7,
    "max_drop": 0.1,
    "latency": 0.7,
    "rank_q": 3,
    "rank_k": 3,
    "rank_v": 3,
    "rank_pos": 3,
    "pair": "blur=sharp",
    "degrade": "noise:25",
    "inputs": ("guide=0.5",),
    "mask_key": "m",
    "measurement_scale": 2.0,
    "mat_key": "m",
    "distill_steps": 3,
    "crop": 16,
    "learning_rate": 3e-4,
    "truth_weight": 0.5,
    "weights": "params",
    "network": "archs.py:build",
    "network_arg": ("dim=3",),
    "example": ("1x3x8x8",),
    "runtimes": ("openvino",),
    "device": "cpu",
}
PATHS = ("data", "targets", "mask", "tensorboard", "output")
SEARCHED = ("macs", "params", "max_drop", "latency")
#: What the commands compare by what was taken, and what a sweep does for itself.
TOLD_ELSEWHERE = {"weights"}
NAMES = tuple(ConvertOptions.model_fields)


def with_another(options: ConvertOptions, name: str, folder: Path) -> ConvertOptions:
    """The options with another value for one of them."""
    field, value = ConvertOptions.model_fields[name], getattr(options, name)
    if name in PATHS:
        other: Any = folder / "other" / "a" if name == "mask" else folder / "other"
    elif name in OTHER:
        other = OTHER[name]
    elif isinstance(value, bool):
        other = not value
    elif get_origin(field.annotation) is Literal:
        other = get_args(field.annotation)[-1]
    else:
        other = value + 1
    return options.model_copy(update={name: other})


@pytest.fixture
def folder(tmp_path: Path, tiny_restormer: Restormer) -> Path:
    for name in ("data", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    torch.save(tiny_restormer.state_dict(), tmp_path / "m.pth")
    return tmp_path


def images() -> ImageData:
    found = MemoryImages([("a", torch.rand(3, 8, 8))])
    return ImageData(found, found, None, "here", (), True)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_says_what_it_affects(name: str) -> None:
    assert affected_by(ConvertOptions, name) in Affects


def test_an_option_that_does_not_say_is_an_error() -> None:
    class Silent(Options):
        shift: int = 0

    with pytest.raises(TypeError, match=r"Silent\.shift"):
        options_that_affect(Affects.REPORT, Silent)


@pytest.mark.parametrize(
    ("affects", "names"),
    [
        (Affects.MEASUREMENTS, {"data", "degrade", "calibration_crops", "input_size", "seed"}),
        (Affects.WEIGHTS, {"rank", "latency", "attention", "batch", "loss", "precision", "distill"}),
        (Affects.REPORT, {"timing", "baselines", "runtimes"}),
        (Affects.NOTHING, {"activation_checkpointing", "device", "output", "workers", "tensorboard"}),
    ],
)
def test_what_options_affect(affects: Affects, names: set[str]) -> None:
    assert {affected_by(ConvertOptions, name) for name in names} == {affects}


@pytest.mark.parametrize("name", NAMES)
def test_resuming_asks_for_what_affects_the_weights(name: str, folder: Path) -> None:
    before = ConvertOptions(data=folder / "data", mask=folder / "data" / "a")
    if name in SEARCHED:  # one budget takes the place of another
        before = make_options(rank="auto", **{name: 0.6})
    now = with_another(before, name, folder)
    same = identity_of(before, images(), {}) == identity_of(now, images(), {})
    assert same == (affected_by(ConvertOptions, name) > Affects.WEIGHTS or name in TOLD_ELSEWHERE)


@pytest.mark.parametrize("name", NAMES)
def test_measurements_are_kept_for_what_affects_them(name: str, folder: Path) -> None:
    teacher = read_checkpoint(folder / "m.pth")
    before = ConvertOptions(data=folder / "data", targets=folder / "data", mask=folder / "data" / "a")
    now = with_another(before, name, folder)
    first, second = (sensitivity_cache(folder / "out", teacher, each).identity for each in (before, now))
    assert (first == second) == (
        affected_by(ConvertOptions, name) > Affects.MEASUREMENTS or name in TOLD_ELSEWHERE
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_makes_points_again_for_what_affects_their_report(name: str, folder: Path) -> None:
    before = ConvertOptions()
    now = with_another(before, name, folder)
    same = not other_options(before.model_dump(mode="json"), now)
    assert same == (affected_by(ConvertOptions, name) > Affects.REPORT or name in TOLD_ELSEWHERE | {"timing"})


# --- one option that was two


def test_a_point_of_a_sweep_of_an_earlier_version_is_taken() -> None:
    made = ConvertOptions().model_dump(mode="json") | {"latency": False}
    del made["timing"]
    assert other_options(made, ConvertOptions()) == []


@pytest.mark.parametrize(
    ("written", "timing", "latency"),
    [
        ("latency: false", False, None),
        ("latency: true", True, None),
        ("latency: 0.7", True, 0.7),
        ("", True, None),
    ],
)
def test_recipes_of_an_earlier_version(
    written: str, timing: bool, latency: float | None, tmp_path: Path
) -> None:
    (tmp_path / "r.yaml").write_text(written)
    content = read_recipe(tmp_path / "r.yaml")
    options = make_options(**content, **({"rank": "auto"} if latency else {}))
    assert (options.timing, options.latency) == (timing, latency)
    assert content == migrated(content) and not isinstance(content.get("latency"), bool)


def test_a_budget_of_time_and_no_timing_go_together() -> None:
    options = make_options(rank="auto", latency=0.7, timing=False)
    assert str(options.budget) == "--latency 0.7" and not options.timing


# --- the command line


def test_choices_are_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", str(folder / "m.pth"), "--loss", "l3"]
    assert run_safely(lambda: cli.main(arguments, prog_name="csa2glmha", standalone_mode=False)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'--loss': 'l3'" in line and all(choice in line for choice in ("l1", "charbonnier", "l2"))
