"""Outputs far beyond [0, 1], as wrong units of the inputs give them, never pass without a word."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from csa2glmha.data.batches import Example
from csa2glmha.families.registry import build
from csa2glmha.metrics.evaluate import evaluate
from csa2glmha.metrics.outputs import SPECTRA
from csa2glmha.metrics.quality import out_of_range
from tests.command_line import run

BANDS, HEIGHT, WIDTH = 4, 24, 32


def test_what_is_out_of_range() -> None:
    output = torch.rand(4, 50, 50)
    assert not out_of_range(output)
    output[0, 0, :20] = 1.3  # overshooting, 0.2 % of the values
    assert not out_of_range(output)
    output[0, 0, 20] = -0.3
    assert out_of_range(output)


@pytest.mark.parametrize("gain", [1.0, 30.0])
def test_run_and_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str], gain: float) -> None:
    """A network whose output is its input, and cubes that one scale leaves in range and another does not."""
    torch.manual_seed(0)
    network = build("mst", {"dim": BANDS, "num_blocks": [1, 1, 1]})
    with torch.no_grad():
        network.get_submodule("mapping").weight.zero_()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "mst.pth")
    np.save(
        tmp_path / "mask.npy", (np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5).astype(np.float32)
    )
    (tmp_path / "shots").mkdir()
    np.save(
        tmp_path / "shots" / "a.npy", np.random.default_rng(1).random((HEIGHT, WIDTH + 6)).astype(np.float32)
    )
    given = ["--mask", tmp_path / "mask.npy", "--measurement-scale", str(1 / gain)]
    said = "far beyond [0, 1]"
    code, _, err = run(
        "run", tmp_path / "mst.pth", tmp_path / "shots", "-o", tmp_path / "o", *given, capsys=capsys
    )
    assert code == 0 and (said in err) == (gain > 1), err
    command = ["evaluate", tmp_path / "mst.pth", "--data", tmp_path / "shots", "--json"]
    code, out, err = run(*command, "--teacher", tmp_path / "mst.pth", *given, capsys=capsys)
    assert code == 0 and (said in err) == (gain > 1), err
    assert json.loads(out)["outputs_out_of_range"] == int(gain > 1)
    example = Example("a", (gain * torch.rand(1, BANDS, 16, 16),), None)
    models = {"teacher": lambda inputs: inputs[0][0], "student": lambda inputs: 0.5 * inputs[0][0]}
    evaluated = evaluate(models, [example], "teacher", SPECTRA)
    assert evaluated["teacher"].to_json().get("outputs_out_of_range", 0) == int(gain > 1)
    assert (said in capsys.readouterr().err) == (gain > 1)
