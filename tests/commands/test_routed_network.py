"""A network that looks at its input to decide what it runs: counted, converted, run in tiles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from csa2glmha.data import write_image
from csa2glmha.inference.memory import tile_needs, training_needs, whole_needs
from csa2glmha.metrics.complexity import BY_VALUES, count_complexity
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.builder import Origin
from csa2glmha.networks.foreign import ForeignNetwork, Interface
from csa2glmha.networks.probe import probe
from tests.commands.test_cli import QUICK, run
from tests.networks import builders

pytestmark = pytest.mark.usefixtures("quick_factors")

OWN = ["--network", "archs.py:Routed"]


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(builders.FILE, tmp_path / "archs.py")
    (tmp_path / "photos").mkdir()
    for index in range(3):
        image = torch.rand(3, 66, 70, generator=torch.Generator().manual_seed(index))
        write_image(tmp_path / "photos" / f"{index}.png", image)
    monkeypatch.chdir(tmp_path)


def foreign(network: nn.Module) -> RestorationModel:
    network.eval()
    return ForeignNetwork(network, probe(network, "it", (), Interface((), 0)), Origin("it", {}, {}))


def test_what_is_run_is_counted_of_the_branch_that_is_taken() -> None:
    network, size = builders.Routed(), 16 * 24
    body = count_complexity(network.body, (1, 3, 16, 24))
    assert not body.by_values
    for value, side in ((0.0, 1), (1.0, 3)):
        counted = count_complexity(network, torch.full((1, 3, 16, 24), value))
        assert counted.by_values and counted.input_shapes == ((1, 3, 16, 24),)
        assert counted.macs == body.macs + size * 9 * side * side
    assert count_complexity(network, (1, 3, 16, 24)).macs == body.macs + size * 81  # noise of mean 0.5


def test_memory_is_that_of_a_network_of_the_same_size() -> None:
    routed, plain = foreign(builders.Routed()), foreign(builders.build())
    assert whole_needs(routed, 512, 384) == pytest.approx(whole_needs(plain, 512, 384), rel=0.1)
    assert training_needs(routed, 2, 256, 256) == pytest.approx(training_needs(plain, 2, 256, 256), rel=0.1)
    one, other = (tile_needs(each, (256, 256), (128, 128), True) for each in (routed, plain))
    assert vars(one) == pytest.approx(vars(other), rel=0.1)


def test_it_is_converted_but_for_onnx_and_run_in_tiles(capsys: pytest.CaptureFixture[str]) -> None:
    data = ["--data", "photos", "--degrade", "noise:25", "--distill-steps", "2", "--crop", "32", *QUICK]
    code, _, err = run("convert", "-", *OWN, "--rank", "2", *data, "-o", "out", capsys=capsys)
    assert code == 0, err
    assert BY_VALUES in err and "def forward" not in err
    assert "not exported: archs.Routed cannot be converted to ONNX, what it runs depends on the values" in err
    assert json.loads(Path("out/report.json").read_text())["complexity"]["by_values"]
    assert BY_VALUES in Path("out/report.md").read_text().replace("What", "what")
    tiles = ["--tile", "28", "--overlap", "8"]
    code, _, err = run(
        "run", "out/student.safetensors", "photos", "-o", "restored", *OWN, *tiles, capsys=capsys
    )
    assert code == 0 and "tiles of" in err, err
    assert len(list(Path("restored").iterdir())) == 3


def test_inspect_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("inspect", "-", *OWN, "--rank", "2", capsys=capsys)
    assert code == 0, err
    assert f"note: {BY_VALUES}" in out and "2 layers (2 with depthwise projections)" in out
