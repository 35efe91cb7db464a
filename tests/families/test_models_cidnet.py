"""What of HVI-CIDNet the conformance suite does not reach: its colour space, and norms between levels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from csa2glmha.checkpoint.student import load
from csa2glmha.export.lowering.rewrite import deploy
from csa2glmha.families.cidnet.colour import HVITransform
from csa2glmha.families.cidnet.hyperparameters import CIDNetHyperparameters
from csa2glmha.families.cidnet.network import CIDNet
from csa2glmha.networks import RestorationModel
from tests.subjects import randomise, scene

TINY = {"channels": [8, 8, 12, 16], "heads": [2, 2, 4], "ffn_expansion_factor": 2.5}


def network(norm: bool) -> RestorationModel:
    torch.manual_seed(0)
    model = CIDNet(**TINY, norm=norm)
    randomise(model)
    return model.eval().requires_grad_(False)


def pixels(*colours: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colours).T[None, :, None]


@torch.no_grad()
def test_there_and_back_is_the_same_image() -> None:
    image = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    image = torch.cat((image, image * 0.01, image.mean(1, keepdim=True).expand_as(image), image.round()))
    transform = HVITransform()
    # The root keeps a saturation of 1e-4 where there is none.
    torch.testing.assert_close(transform.inverse(transform(image)), image, rtol=0, atol=2e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("colour", "sixths"),
    [((1, 0, 0), 0), ((1, 1, 0), 1), ((0, 1, 0), 2), ((0, 1, 1), 3), ((0, 0, 1), 4), ((1, 0, 1), -1)],
)
def test_the_angle_is_the_hue(colour: tuple[float, float, float], sixths: int) -> None:
    across, up, value = HVITransform()(pixels(colour))[0, :, 0, 0]
    angle = sixths * math.pi / 3
    assert (float(across), float(up)) == pytest.approx((math.cos(angle), math.sin(angle)), abs=1e-5)
    assert float(value) == 1


@torch.no_grad()
def test_hues_just_below_a_whole_turn_are_red() -> None:
    """In the published code rounding takes them to a seventh sixth of the circle, which is black."""
    hvi = torch.tensor([0.5, -2e-8, 0.5]).view(1, 3, 1, 1)
    red, green, blue = HVITransform().inverse(hvi).flatten().tolist()
    assert red == pytest.approx(0.5) and green < 0.3 and blue < 0.3


@torch.no_grad()
def test_values_out_of_range_give_numbers() -> None:
    image = scene(3, 24, 32) - 0.3
    image[..., :8] = -0.2
    transform = HVITransform()
    assert torch.equal(transform(image), transform(image.clamp_min(0)))
    output = transform.inverse(5 * torch.randn(1, 3, 20, 20))
    assert output.min() >= 0 and output.max() <= 1
    assert network(norm=False)(image).isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("norm", [False, True])
def test_networks_with_and_without_norms_are_loaded_and_deployed(norm: bool, tmp_path: Path) -> None:
    model = network(norm)
    extra = {f"I_LCA5.{name}": torch.ones(1) for name in ("norm.weight", "ffn.q.weight")}
    torch.save(model.state_dict() | extra, tmp_path / "model.pth")  # published files have it, unused
    loaded = load(tmp_path / "model.pth")
    assert loaded.hyperparameters == model.hyperparameters == {**TINY, "norm": norm}
    image = scene(3, 21, 30)
    assert torch.equal(loaded(image), model(image))
    torch.testing.assert_close(deploy(model)(image), model(image), rtol=0, atol=2e-4)


def test_heads_that_do_not_divide_channels_are_named() -> None:
    with pytest.raises(ValueError, match="heads: 5 do not divide 12 channels"):
        CIDNetHyperparameters(**(TINY | {"heads": [2, 5, 4], "norm": False}))
