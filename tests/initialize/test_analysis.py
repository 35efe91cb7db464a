"""Spectra of attention, what each rank must lose, and the command that shows them."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from csa2glmha.analysis.measure import analyse_layer, measure
from csa2glmha.analysis.plots import plot_heads, plot_layers
from csa2glmha.analysis.spectra import (
    cumulative_energy,
    energy_shares,
    rank_for_energy,
    relative_entropy,
    remainder,
    truncation_errors,
)
from csa2glmha.commands.analyze import JSON_FILE, PLOT_FILES, analyze_file, describe_analysis
from csa2glmha.commands.convert import convert
from csa2glmha.config.options import make_options
from csa2glmha.config.ranks import Ranks
from csa2glmha.data.batches import Inputs
from csa2glmha.embedded import embedded_teacher
from csa2glmha.families.registry import build
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.reading.layers import attention_layers
from tests.command_line import complaint, run
from tests.conftest import MakeRestormer, batches

CALIBRATION = ["--calibration-crops", "2", "--calibration-size", "16"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(*shape: int, seed: int = 0) -> Tensor:
    """Maps whose rows sum to one."""
    return randn(*shape, seed=seed).softmax(-1)


# --- mathematics


def test_cumulative_energy_of_known_matrices() -> None:
    """Singular values 2, 1, 0 and 1, 1, 1, turned by rotations: squares 4:1:0 and 1:1:1."""
    rotations = torch.linalg.qr(randn(4, 3, 3))[0]
    first = rotations[0] @ torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64)) @ rotations[1]
    second = rotations[2]
    maps = torch.stack((first, second)).unsqueeze(1)  # two images, one head
    expected = torch.tensor([[(0.8 + 1 / 3) / 2, (1.0 + 2 / 3) / 2, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(cumulative_energy(maps), expected)


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 7), st.integers(0, 1000))
def test_cumulative_energy_rises_to_one(images: int, heads: int, c: int, seed: int) -> None:
    found = cumulative_energy(attention(images, heads, c, c, seed=seed))
    assert found.shape == (heads, c)
    assert (found[:, -1] == 1).all()
    assert (found.diff(dim=-1) >= 0).all() and (found > 0).all()


def test_remainder_keeps_small_shares_and_survives_zeros() -> None:
    powers = torch.tensor([[1.0, 1e-20, 1e-30], [0.0, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(
        remainder(powers)[0, 0], torch.tensor(1e-20, dtype=torch.float64), atol=0, rtol=1e-6
    )
    assert torch.equal(remainder(powers)[1], torch.zeros(3, dtype=torch.float64))


def test_constant_attention_is_static() -> None:
    uniform, pattern, varying = energy_shares(attention(1, 2, 5, 5).expand(4, 2, 5, 5))
    torch.testing.assert_close(uniform + pattern, torch.ones(2, dtype=torch.float64))
    assert (varying < 1e-30).all() and (pattern > 0.01).all()
    uniform, pattern, varying = energy_shares(torch.full((3, 1, 4, 4), 0.25))
    assert (float(uniform), float(pattern), float(varying)) == pytest.approx((1, 0, 0))


def test_shares_of_a_mixture_made_by_hand() -> None:
    """Two images of one head, c = 2: 1/2 everywhere, plus a pattern they share, plus one they do not."""
    pattern = torch.tensor([[0.3, -0.3], [0.0, 0.0]])
    change = torch.tensor([[0.0, 0.0], [0.1, -0.1]])
    maps = torch.stack((0.5 + pattern + change, 0.5 + pattern - change)).unsqueeze(1)
    total = 1.0 + 0.18 + 0.02
    found = [float(share) for share in energy_shares(maps)]
    assert found == pytest.approx([1 / total, 0.18 / total, 0.02 / total])


@settings(max_examples=25)
@given(st.integers(1, 5), st.integers(2, 7), st.integers(0, 1000))
def test_shares_sum_to_one_and_agree_with_the_mean_map(images: int, c: int, seed: int) -> None:
    maps = attention(images, 2, c, c, seed=seed)
    uniform, pattern, varying = energy_shares(maps)
    torch.testing.assert_close(uniform + pattern + varying, torch.ones(2, dtype=torch.float64))
    energy = maps.square().sum((-2, -1)).mean(0)
    torch.testing.assert_close(uniform + pattern, maps.mean(0).square().sum((-2, -1)) / energy)


def test_entropy() -> None:
    assert float(relative_entropy(torch.full((2, 1, 4, 4), 0.25))) == pytest.approx(1)
    assert float(relative_entropy(torch.eye(4).expand(2, 1, 4, 4))) == 0
    half = torch.tensor([[0.5, 0.5, 0, 0]]).expand(4, 4).expand(2, 1, 4, 4)
    assert float(relative_entropy(half)) == pytest.approx(math.log(2) / math.log(4))
    assert float(relative_entropy(torch.ones(2, 1, 1, 1))) == 1


@settings(max_examples=25)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_truncation_errors_are_those_of_the_whitened_bank(c: int, seed: int) -> None:
    left, right = (root @ root.mT for root in (randn(1, c, c, seed=seed), randn(1, 9, 9, seed=seed + 1)))
    left, right = left + torch.eye(c), right + torch.eye(9)
    bank = randn(1, c, 9, seed=seed + 2)
    # Any roots do: the singular values are the same.
    whitened = torch.linalg.cholesky(left).mT @ bank @ torch.linalg.cholesky(right)
    values = torch.linalg.svdvals(whitened)[0]
    expected = [float(values[rank:].norm() / values.norm()) for rank in range(1, c + 1)]
    found = truncation_errors(bank, left, right)[0].tolist()
    assert found == pytest.approx(expected, abs=1e-7)
    assert found[-1] == 0


def test_rank_for_energy() -> None:
    errors = [0.6, 0.3, math.sqrt(0.05), 0.1, 0.0]
    assert [rank_for_energy(errors, share) for share in (0.0, 0.64, 0.65, 0.95, 0.99, 0.991, 1.0)] == [
        *(1, 1, 2, 3, 4, 5, 5)
    ]
    assert rank_for_energy([0.5], 0.9) == 1  # full rank is exact
    for errors, share in (([], 0.5), ([0.1], 1.1), ([0.1], -0.1), ([0.1], math.nan)):
        with pytest.raises(ValueError, match="share"):
            rank_for_energy(errors, share)


# --- networks


def spectral_network(name: str) -> nn.Module:
    settings: dict[str, Any] = {
        "mst": {"dim": 6, "num_blocks": [1, 1, 1]},
        "mst_plus_plus": {"in_channels": 3, "n_feat": 6, "stage": 1, "num_blocks": [1, 1]},
    }[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(name, settings)
        for parameter_name, parameter in network.named_parameters():
            if parameter_name.endswith(("to_q.weight", "to_k.weight")):
                nn.init.normal_(parameter)
    return network.eval().requires_grad_(False)


def inputs_of(name: str) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    if name == "mst":
        return batches(
            torch.rand(6, 6, 16, 16, generator=generator), 2, torch.rand(1, 6, 16, 26, generator=generator)
        )
    return batches(torch.rand(6, 3, 16, 16, generator=generator))


@pytest.mark.parametrize("name", ["mst", "mst_plus_plus"])
def test_prediction_is_the_error_of_pointwise_layers(name: str) -> None:
    network, inputs = spectral_network(name), inputs_of(name)
    layers = attention_layers(network)
    found = {layer["name"]: layer for layer in measure(network, layers, inputs)["layers"]}
    compared = 0
    for rank in (1, 2):
        _, fits = initialise_student(network, plan_layers(layers, Ranks(k=rank, v=rank)), inputs)
        for layer_name, fit in fits.items():
            for part, actual in (("key", fit.key_error), ("value", fit.value_error)):
                predicted = [errors[rank - 1] for errors in found[layer_name][f"{part}_error_heads"]]
                assert not actual or actual == pytest.approx(predicted, rel=1e-3, abs=1e-4)
                compared += len(actual)
    assert compared > 10


@pytest.mark.parametrize("biased", [False, True])
def test_prediction_is_a_bound_where_factors_are_separable(
    make_restormer: MakeRestormer, biased: bool
) -> None:
    network = make_restormer(bias=biased, num_refinement_blocks=0)
    layers = {
        name: layer
        for name, layer in attention_layers(network).items()
        if name.startswith(("encoder_level3", "latent"))
    }
    inputs = batches(torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    found = {layer["name"]: layer for layer in measure(network, layers, inputs)["layers"]}
    reached = []
    for rank in (2, 6):
        _, fits = initialise_student(network, plan_layers(layers, Ranks(k=rank, v=rank)), inputs)
        for name, fit in fits.items():
            for part, actual in (("key", fit.key_error), ("value", fit.value_error)):
                for bound, error in zip(found[name][f"{part}_error_heads"], actual, strict=True):
                    assert bound[rank - 1] <= error * (1 + 1e-4)
                    reached.append(bound[rank - 1] / error)
    assert max(reached) > 0.5  # not an idle bound


def check_schema(found: dict[str, Any], layers: int) -> None:
    assert found["images"] > 0 and len(found["layers"]) == layers
    for layer in found["layers"]:
        heads, c = layer["heads"], layer["head_channels"]
        assert layer["channels"] == heads * c and isinstance(layer["name"], str)
        shares = ("static_share", "uniform_share", "pattern_share", "varying_share")
        for name in ("temperature", "entropy", "largest", *shares):
            assert len(layer[name]) == heads and all(isinstance(value, float) for value in layer[name])
        for static, varying in zip(layer["static_share"], layer["varying_share"], strict=True):
            assert 0 <= varying < 1 and static + varying == pytest.approx(1, abs=1e-5)
        assert len(layer["cumulative"]) == heads
        for curve in layer["cumulative"]:
            assert len(curve) == c and curve[-1] == 1 and curve == sorted(curve)
        for part in ("key", "value"):
            per_head = np.array(layer[f"{part}_error_heads"])
            assert per_head.shape == (heads, c)
            overall = layer[f"{part}_error"]
            assert overall == pytest.approx(np.sqrt(np.square(per_head).mean(0)), rel=1e-4, abs=1e-6)
            assert overall[-1] == 0 and all(b <= a for a, b in itertools.pairwise(overall))
            assert 0 < overall[0] < 1


def test_figures_of_a_restormer(make_restormer: MakeRestormer) -> None:
    network = make_restormer(num_refinement_blocks=0)
    layers = attention_layers(network)
    inputs = batches(torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    found = measure(network, layers, inputs)
    check_schema(found, 7)
    assert json.loads(json.dumps(found)) == found and found["images"] == 5
    for layer in found["layers"]:
        assert layer["temperature"] == pytest.approx(
            layers[layer["name"]].form.temperature.tolist(), rel=1e-5
        )
        assert all(1 / layer["head_channels"] < largest < 1 for largest in layer["largest"])


def test_errors_of_what_was_not_gathered_are_empty(make_restormer: MakeRestormer) -> None:
    network = make_restormer()
    layers = {"latent.0.attn": attention_layers(network)["latent.0.attn"]}
    inputs = batches(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    _, fits = initialise_student(network, plan_layers(layers, Ranks(k=2)), inputs, None, analyse_layer)
    found = fits["latent.0.attn"].analysis
    assert found is not None
    assert len(found["key_error"]) == 16 and found["value_error"] == found["value_error_heads"] == []
    plot_layers({"layers": [found]})
    plot_heads({"layers": [found]})


def test_a_dead_head_is_no_obstacle(make_restormer: MakeRestormer) -> None:
    network = make_restormer()
    for parameter in network.latent[0].attn.parameters():
        parameter.zero_()
    layers = {"latent.0.attn": attention_layers(network)["latent.0.attn"]}
    inputs = batches(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)))
    (layer,) = measure(network, layers, inputs)["layers"]
    assert layer["key_error"] == layer["value_error"] == [0.0] * 16
    assert layer["uniform_share"] == pytest.approx([1] * 4)


# --- the command


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every family and a mask, in a folder with a space in its name."""
    folder = tmp_path_factory.mktemp("some checkpoints")
    for name in ("mst", "mst_plus_plus"):
        torch.save({"state_dict": spectral_network(name).state_dict()}, folder / f"{name}.pth")
    np.save(folder / "mask.npy", np.ones((16, 24), np.float32))
    return folder


def test_command_on_the_embedded_denoiser(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "an analysis"
    with embedded_teacher() as checkpoint:
        command = ["analyze", checkpoint, "--degrade", "noise:25", *CALIBRATION]
        code, out, err = run(*command, "-o", output, capsys=capsys)
        assert code == 0, err
        assert "photographs bundled with scikit-image" in out and "noise:25" in out and "latent.0.attn" in out
        assert "no --data" in err
        assert {path.name for path in output.iterdir()} == {JSON_FILE, *PLOT_FILES}
        written = json.loads((output / JSON_FILE).read_text())
        check_schema(written, len(written["layers"]))
        assert written["architecture"] == "restormer" and written["data"]["crop"] == [16, 16]
        for name in PLOT_FILES:
            start = (output / name).read_bytes()[:100]
            assert start.startswith(b"\x89PNG") if name.endswith("png") else b"<?xml" in start
        before = {path: path.read_bytes() for path in output.iterdir()}
        line = complaint(*command, "-o", output, capsys=capsys, code=1)
        assert "--overwrite" in line and JSON_FILE in line
        code, out, err = run(*command, "-o", output, "--overwrite", "--json", capsys=capsys)
        assert code == 0, err
        assert json.loads(out) == written
        assert {path: path.read_bytes() for path in output.iterdir()} == before  # to the byte, plots too


@pytest.mark.parametrize(
    ("name", "extra", "source"),
    [
        ("mst", [], "synthetic spectra"),
        ("mst", ["--mask", "mask.npy"], "synthetic spectra"),
        ("mst_plus_plus", [], "photographs bundled"),
    ],
)
def test_command_on_spectral_networks(
    place: Path,
    name: str,
    extra: list[str],
    source: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(place)
    code, out, err = run("analyze", f"{name}.pth", *extra, *CALIBRATION, "--json", capsys=capsys)
    assert code == 0, err
    found = json.loads(out)
    check_schema(found, len(found["layers"]))
    assert found["architecture"] == name and source in found["data"]["source"]
    assert "V 4" in describe_analysis(found) and "V 8" not in describe_analysis(found)  # c is 6


def test_convert_reports_it_and_students_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a distillation, so that nothing but the initialisation is needed."""
    options = {"degrade": "noise:25", "calibration_crops": 2, "calibration_size": 16, "input_size": 32}
    output = tmp_path / "out"
    with embedded_teacher() as checkpoint:
        report = convert(checkpoint, rank=4, distill=False, latency=False, output=output, **options).report
        found = analyze_file(checkpoint, make_options(**options))
    assert report["analysis"] == {"images": found["images"], "layers": found["layers"]}
    student = output / "student.safetensors"
    line = complaint("analyze", student, capsys=capsys, code=2)
    assert "is a student; give the teacher's checkpoint" in line


def test_mistakes_are_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--mask" in complaint(
        "analyze", place / "mst_plus_plus.pth", "--mask", place / "mask.npy", capsys=capsys, code=2
    )
    assert "nowhere" in complaint(
        "analyze", place / "mst.pth", "--data", tmp_path / "nowhere", capsys=capsys, code=1
    )
    assert "missing.pth" in complaint("analyze", tmp_path / "missing.pth", capsys=capsys, code=1)


# --- real weights


def test_official_mst_weights(shared: Path) -> None:
    """What the design's page says of them: temperatures, variance between images, energy of four values."""
    options = make_options(
        data=shared / "data/bsds_train",
        mask=shared / "data/cassi/simu_mask.mat",
        calibration_crops=8,
        calibration_size=128,  # smaller scenes differ more than the page's, of 256
    )
    layers = analyze_file(shared / "checkpoints/mst_s.pth", options)["layers"]
    assert len(layers) == 10

    def over_all(name: str) -> list[float]:
        return [value for layer in layers for value in layer[name]]

    assert 0.95 < min(over_all("temperature")) < 1.05 and 1.85 < max(over_all("temperature")) < 1.95
    assert 0.001 < min(over_all("varying_share")) < 0.01 and 0.05 < max(over_all("varying_share")) < 0.2
    four = [head[3] for layer in layers for head in layer["cumulative"]]
    assert min(four) > 0.92 and max(four) > 0.998
