"""Networks from RGB to spectra take whole images stretched to [0, 1], as the official code gives them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from csa2glmha.checkpoint import read_checkpoint
from csa2glmha.checkpoint.student import load
from csa2glmha.commands.run import run_files
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import UsageError
from csa2glmha.data.images import read_image, write_image
from csa2glmha.data.inputs.stretch import stretch
from csa2glmha.data.open import open_data
from csa2glmha.export.metadata import inspect_onnx
from csa2glmha.families.registry import build
from csa2glmha.inference.plan import TileOptions
from tests.command_line import complaint, run
from tests.conftest import MakeRestormer

BANDS = 8
QUICK = ["--calibration-crops", "4", "--calibration-size", "16", "--crop", "16", "--no-latency", "--rank"]
QUICK += ["2", "--input-size", "32", "--no-distill"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network and images of little contrast: values from 0.3 to 0.6, the extremes in two corners."""
    folder = tmp_path_factory.mktemp("stretch")
    torch.manual_seed(0)
    network = build("mst_plus_plus", {"in_channels": 3, "n_feat": BANDS, "stage": 1, "num_blocks": [1, 1]})
    torch.save({"state_dict": network.state_dict()}, folder / "mstpp.pth")
    (folder / "rgb").mkdir()
    (folder / "cubes").mkdir()
    for index in range(3):
        image = 0.35 + 0.2 * torch.rand(3, 48, 64)
        image[0, 0, 0], image[2, -1, -1] = 0.3, 0.6
        write_image(folder / "rgb" / f"{index}.png", image)
        np.save(folder / "cubes" / f"{index}.npy", torch.rand(48, 64, BANDS).numpy())
    return folder


def by_hand(place: Path, index: int, stretched: bool = True) -> Tensor:
    """What the network makes of an image, by the arithmetic of the official code on 8-bit values."""
    image = (read_image(place / "rgb" / f"{index}.png", 3) * 255).round()
    image = (image - image.min()) / (image.max() - image.min()) if stretched else image / 255
    with torch.no_grad():
        output = load(place / "mstpp.pth")(image[None])[0]
    return output.clamp(0, 1) if stretched else output


def test_stretch() -> None:
    image = 0.2 + 0.5 * torch.rand(3, 5, 6)
    assert (float(stretch(image).min()), float(stretch(image).max())) == (0, 1)
    flat = torch.full((3, 5, 6), 0.4)
    assert torch.equal(stretch(flat), flat)


def test_run_whole_and_in_tiles(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, image = place / "mstpp.pth", [place / "rgb" / "0.png"]
    (whole,) = run_files(model, image, tmp_path / "whole").written
    assert "--no-stretch takes images as they are" in capsys.readouterr().err
    np.testing.assert_allclose(np.load(whole), by_hand(place, 0).permute(1, 2, 0), atol=1e-5)
    (tiled,) = run_files(model, image, tmp_path / "tiled", tiles=TileOptions(48, 8)).written
    # The extremes are in corners, so that tiles stretched each on its own would be far off.
    off = np.abs(np.load(tiled) - np.load(whole)).mean()
    options = make_options(stretch=False)
    (plain,) = run_files(model, image, tmp_path / "plain", options=options).written
    np.testing.assert_allclose(np.load(plain), by_hand(place, 0, False).permute(1, 2, 0), atol=1e-5)
    assert off < 0.2 * np.abs(np.load(plain).clip(0, 1) - np.load(whole)).mean()


def test_crops_are_cut_from_stretched_images(place: Path) -> None:
    model = load(place / "mstpp.pth")
    data = open_data(model, make_options(data=place / "rgb", targets=place / "cubes"))
    plain = open_data(model, make_options(data=place / "rgb", targets=place / "cubes", stretch=False))
    assert (data.stretched, plain.stretched) == (True, False)
    assert any("stretched to [0, 1]" in note for note in data.notes) and len(data.notes) > len(plain.notes)
    stored = read_image(place / "rgb" / "0.png", 3)
    low, high = stored.min(), stored.max()  # of all three
    for one, other in (
        (data.training(16, 0).batch(0, 0, 2).inputs[0], plain.training(16, 0).batch(0, 0, 2).inputs[0]),
        (data.calibration(16, 2, 0)[0][0], plain.calibration(16, 2, 0)[0][0]),
        (data.examples(32, 0)[0].inputs[0], plain.examples(32, 0)[0].inputs[0]),
    ):
        torch.testing.assert_close(one, (other - low) / (high - low), atol=1e-5, rtol=0)
    first, second = (each.training(16, 0).batch(0, 0, 2).ground_truth for each in (data, plain))
    assert first is not None and second is not None and torch.equal(first, second)
    assert open_data(model, make_options()).stretched  # photographs that come with the tool, too


@pytest.mark.parametrize("stretched", [True, False])
def test_students_keep_to_how_they_were_made(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stretched: bool
) -> None:
    switch = [] if stretched else ["--no-stretch"]
    convert = ["convert", place / "mstpp.pth", "--data", place / "rgb", *QUICK, *switch]
    code, _, err = run(*convert, "-o", tmp_path / "out", capsys=capsys)
    assert code == 0, err
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["data"]["stretched"] == report["options"]["stretch"] == stretched
    student, onnx = tmp_path / "out" / "student.safetensors", tmp_path / "out" / "model.onnx"
    said = "yes" if stretched else "no"
    assert read_checkpoint(student).metadata["stretch"] == inspect_onnx(onnx)["metadata"]["stretch"] == said
    targets = ["--data", place / "rgb", "--targets", place / "cubes", "--json"]
    found = {}
    ways: dict[str, list[str | Path]] = {
        "student": [student],
        "onnx": [onnx],
        "off": [student, "--no-stretch"],
        "teacher": [place / "mstpp.pth", *switch],
    }
    for name, arguments in ways.items():
        code, out, err = run("evaluate", *arguments, *targets, capsys=capsys)
        assert code == 0, err
        found[name] = json.loads(out)
    assert [each["stretched"] for each in found.values()] == [stretched, stretched, False, stretched]
    rmse = {name: each["ground_truth"]["mean"]["rmse"] for name, each in found.items()}
    assert rmse["student"] == pytest.approx(rmse["onnx"], rel=1e-3)
    assert (rmse["student"] == pytest.approx(rmse["off"], rel=1e-3)) == (not stretched)
    (written,) = run_files(onnx, [place / "rgb" / "0.png"], tmp_path / "run").written
    values = np.load(written)
    assert (values.min() >= 0 and values.max() <= 1) or not stretched
    more = ["distill", student, "--teacher", place / "mstpp.pth", "--data", place / "rgb", "--crop", "16"]
    code, _, err = run(*more, "--distill-steps", "1", "-o", tmp_path / "more.safetensors", capsys=capsys)
    assert code == 0 and ("stretched to [0, 1]" in err) == stretched, err
    assert read_checkpoint(tmp_path / "more.safetensors").metadata["stretch"] == said


def test_only_where_it_is_done(
    make_restormer: MakeRestormer, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_restormer()
    with pytest.raises(UsageError, match="--no-stretch: restormer takes images as they are"):
        open_data(model, make_options(stretch=False))
    assert not open_data(model, make_options()).stretched
    torch.save({"params": model.state_dict()}, tmp_path / "model.pth")
    for command in (
        ["run", tmp_path / "model.pth", place / "rgb", "-o", tmp_path / "out"],
        ["evaluate", tmp_path / "model.pth", "--data", place / "rgb", "--degrade", "noise:5"],
    ):
        assert "takes images as they are" in complaint(*command, "--no-stretch", capsys=capsys, code=2)
