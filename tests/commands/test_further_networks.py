"""ONNX files of networks that take more than an image, in `run`, `evaluate` and `bench`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from csa2glmha.data import read_image, write_image
from csa2glmha.networks import reflect_pad_to_multiple
from csa2glmha.networks.builder import Origin
from csa2glmha.networks.foreign import ForeignNetwork, Interface
from csa2glmha.networks.model import reflect_pad_to
from tests.commands.test_cli import complaint, run
from tests.conftest import smooth_images
from tests.networks import builders

GUIDED = ["--network", "archs.py:Guided", "--example", "1x3x32x64", "--example", "1x1x16x32"]
WEIGHED = ["--network", "archs.py:Weighed", "--example", "1x3x32x64", "--example", "1x2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Code, weights and images with 42 x 38 pixels, half of which is no multiple of four; maps, numbers."""
    place = tmp_path_factory.mktemp("with maps")
    shutil.copy(builders.FILE, place / "archs.py")
    for name in ("photos", "guides"):
        (place / name).mkdir()
    for index, image in enumerate(smooth_images(2, side=42)):
        write_image(place / "photos" / f"{index}.png", image[:, :, :38])
        np.savez(place / "guides" / f"{index}.npz", guide=image[0, ::2, :38:2].numpy(), other=np.ones(3))
    np.save(place / "numbers.npy", np.array([0.25, 0.5], np.float32))
    return place


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


@pytest.mark.parametrize(
    ("own", "given"), [(GUIDED, "guide=guides"), (WEIGHED, "numbers=numbers.npy")], ids=["maps", "numbers"]
)
def test_files_are_run_and_evaluated_as_their_networks(
    own: list[str], given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = given.partition("=")[0]
    code, out, err = run("export", "-", *own, "-o", f"{name}.onnx", capsys=capsys)
    assert code == 0, err
    more = ["--input", given]
    line = complaint("run", f"{name}.onnx", "photos", "-o", "no", capsys=capsys, code=2)
    assert f"takes {name} beside the image: give --input {name}=FOLDER" in line
    for model, into, network in (("-", f"{name} torch", own), (f"{name}.onnx", f"{name} onnx", [])):
        code, _, err = run("run", model, "photos", "-o", into, *network, *more, capsys=capsys)
        assert code == 0, err
    for index in range(2):
        one, other = (read_image(Path(f"{name} {each}", f"{index}.png"), 3) for each in ("torch", "onnx"))
        assert one.shape == (3, 42, 38)
        assert float((one - other).abs().max()) <= 1 / 255 + 1e-6
    data = ["--data", "photos", "--degrade", "noise:25"]
    against = ["--teacher", "-", *own, *more]
    code, out, err = run("evaluate", f"{name}.onnx", *against, *data, "--json", capsys=capsys)
    assert code == 0, err
    assert json.loads(out)["teacher"]["mean"]["psnr"] > 80
    code, out, err = run("bench", f"{name}.onnx", "--size", "32", "--seconds", "0", capsys=capsys)
    assert code == 0, err


def test_smaller_maps_are_padded_with_the_image(folder: Path) -> None:
    """To half of what the image is padded to, though half the image is no multiple of anything."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = builders.Guided()
    face = Interface(((1, 3, 32, 64), (1, 1, 16, 32)), 3, multiple=4)
    model = ForeignNetwork(network, face, Origin("it", {}, {})).eval()
    image, guide = torch.rand(1, 3, 42, 38), torch.rand(1, 1, 21, 19)
    with torch.no_grad():
        found = model(image, guide)
        whole = network(reflect_pad_to_multiple(image, 4), reflect_pad_to(guide, 22, 20))
    assert torch.equal(found, whole[..., :42, :38])
