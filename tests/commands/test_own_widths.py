"""--ffn with a network of the user's own: found, narrowed, trained, resumed, and known to all commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import csa2glmha
from csa2glmha.data import write_image
from tests.commands.test_cli import QUICK, run
from tests.commands.test_network_commands import interrupted_and_resumed
from tests.conftest import smooth_images
from tests.networks import feedforwards, image

pytestmark = pytest.mark.usefixtures("quick_factors")

OWN = ["--network", f"{feedforwards.FILE}:Denoiser"]
DATA = ["--data", "photos", "--degrade", "noise:25"]
TRAINED = ["--distill-steps", "6", "--crop", "32", "--batch", "2", *QUICK]
GATED, TOKENS, NORMED = "blocks.0.ffn", "blocks.1.ffn.mlp", "blocks.2.ffn.mlp.fc2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and images."""
    place = tmp_path_factory.mktemp("own widths")
    torch.save(feedforwards.Denoiser().state_dict(), place / "weights.pth")
    (place / "photos").mkdir()
    for index, each in enumerate(smooth_images(3, side=40)):
        write_image(place / "photos" / f"{index}.png", each)
    return place


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_a_dry_run_counts_narrower_networks(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", "weights.pth", *OWN, "--rank", "2", *DATA, "--dry-run"]
    left = []
    for width in ("full", "0.67"):
        code, out, err = run(*command, "--ffn", width, capsys=capsys)
        assert code == 0, err
        left.append(float(re.findall(r"MAC \(([0-9.]+)\)", out)[0]))
    assert left[1] < left[0] - 0.1


@pytest.fixture(scope="module")
def resumed(folder: Path) -> Path:
    """A conversion that Ctrl-C ended in its training, and that went on."""
    command = ["convert", "weights.pth", *OWN, "--rank", "2", "--ffn", "0.67", *DATA, *TRAINED, "-o", "out"]
    interrupted_and_resumed(command, folder)
    return folder / "out"


def test_inspect_says_what_can_be_narrowed_and_what_not(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("inspect", "weights.pth", *OWN, "--rank", "2", capsys=capsys)
    assert code == 0, err
    assert "feed-forward networks that can be narrowed: 45% of the MACs, 2 networks" in out
    assert f"not to be narrowed: {NORMED}: a layer norm of its hidden channels" in out


def test_the_report_has_widths_errors_and_costs(resumed: Path) -> None:
    report = json.loads((resumed / "report.json").read_text())
    layers = {layer["name"]: layer for layer in report["feed_forwards"]}
    assert layers.keys() == {GATED, TOKENS}
    for layer in layers.values():
        assert (layer["hidden_before"], layer["hidden_after"]) == (24, 16)
        assert 0 < layer["error"] < 1 and layer["macs_after"] == pytest.approx(layer["macs_before"] * 2 / 3)
    assert {layer["name"] for layer in report["refit"]["layers"]} >= layers.keys()
    assert report["distillation"]["steps"] == 6


def test_commands_know_the_student(resumed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = resumed / "student.safetensors"
    code, out, err = run("inspect", student, *OWN, "--json", capsys=capsys)
    assert code == 0, err
    found = {each["name"]: each for each in json.loads(out)["feed_forwards"]}
    assert {name: each["hidden"] for name, each in found.items()} == {GATED: 16, TOKENS: 16}
    code, out, err = run(
        "evaluate", student, "--teacher", "weights.pth", *OWN, *DATA, "--json", capsys=capsys
    )
    assert code == 0, err
    assert json.loads(out)["teacher"]["mean"]["psnr"] > 20
    more = ["--distill-steps", "2", "--crop", "32", "--batch", "2", "-o", "more.safetensors"]
    code, _, err = run("distill", student, "--teacher", "weights.pth", *OWN, *DATA, *more, capsys=capsys)
    assert code == 0, err
    # For all sizes, as for the conversion's own file, PyTorch's exporter takes three times as long.
    one_size = ["--shape", "1x3x32x32"]
    code, _, err = run("export", "more.safetensors", *OWN, *one_size, "-o", "more.onnx", capsys=capsys)
    assert code == 0, err
    assert Path("more.onnx").stat().st_size > 0 and (resumed / "model.onnx").exists()


def test_compress_narrows_them_and_says_what_stays(capsys: pytest.CaptureFixture[str]) -> None:
    batches = [torch.cat([image(16, 24, seed), image(16, 24, seed + 5)]) for seed in (1, 2, 3)]
    result = csa2glmha.compress(feedforwards.Denoiser(), batches, rank="full", ffn=0.67)
    said = capsys.readouterr().err
    assert f"not narrowed: '{NORMED}': a layer norm of its hidden channels" in said
    assert result.student.get_submodule(GATED).project_out.in_channels == 16
    counted = result.record.complexity
    assert len(result.record.feed_forwards or ()) == 2 and counted.after.macs < counted.before.macs
    layers = (*result.record.layers, *(result.record.feed_forwards or ()))
    saved = sum(layer.macs_before - layer.macs_after for layer in layers)
    assert counted.before.macs - counted.after.macs == saved
