from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import CheckpointError
from csa2glmha.families.registry import build_from_state, recognise
from csa2glmha.families.restormer.hyperparameters import hyperparameters_from
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.families.transposed.blocks import ChannelLayerNorm
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.metrics.complexity import Complexity, count_complexity
from csa2glmha.networks import reflect_pad_to_multiple
from csa2glmha.reading.layers import attention_layers, replace_layers
from tests.conftest import MakeRestormer
from tests.subjects import family_names


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --- the official network


def full_size(**ranks: int | None) -> Complexity:
    """What the published Restormer costs, converted at these ranks unless none are given."""
    with torch.device("meta"):
        model = Restormer()
        if ranks:
            replace_layers(model, plan_layers(attention_layers(model), Ranks(**ranks)))
    return count_complexity(model, (1, 3, 256, 256))


def test_full_size_costs_what_was_published() -> None:
    count = full_size()
    assert round(count.params / 1e6, 2) == 26.13
    assert round(count.macs / 1e9, 1) == 154.9
    assert round(count.conv_macs / 1e9, 2) == 140.99  # the paper's figure holds convolutions alone
    assert not count.uncounted


@pytest.mark.parametrize(
    ("ranks", "macs", "params"),
    [
        ({"k": 8, "v": 8}, 113.50, 23.355),
        ({"q": 16, "k": 8, "v": 8}, 105.01, 22.213),
        ({"q": None, "k": None, "v": None}, 148.03, 26.127),
    ],
    ids=["rank 8", "rank 8, q 16", "full"],
)
def test_full_size_student_costs(ranks: dict[str, int | None], macs: float, params: float) -> None:
    count = full_size(**ranks)
    assert (round(count.macs / 1e9, 2), round(count.params / 1e6, 3)) == (macs, params)
    assert not count.uncounted


def test_layer_norm_forms() -> None:
    x = image(2, 5, 3, 4) * 3 - 1
    weight, bias = image(5, seed=1) + 0.5, image(5, seed=2)
    plain, free = ChannelLayerNorm(5, True), ChannelLayerNorm(5, False)
    plain.load_state_dict({"weight": weight, "bias": bias})
    free.load_state_dict({"weight": weight})
    last = x.permute(0, 2, 3, 1)
    expected = torch.nn.functional.layer_norm(last, (5,), weight, bias).permute(0, 3, 1, 2)
    torch.testing.assert_close(plain(x), expected)
    deviation = torch.sqrt(((x - x.mean(1, keepdim=True)) ** 2).mean(1, keepdim=True) + 1e-5)
    torch.testing.assert_close(free(x), x / deviation * weight.view(5, 1, 1))


# --- any image size


@pytest.mark.parametrize("height", [*range(1, 10), 16, 17])
@pytest.mark.parametrize("width", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("multiple", [4, 8])
def test_padding_is_numpys_reflection(height: int, width: int, multiple: int) -> None:
    x = image(1, 2, height, width)
    pad = [(0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)]
    np.testing.assert_array_equal(
        reflect_pad_to_multiple(x, multiple).numpy(), np.pad(x.numpy(), pad, mode="reflect")
    )


@pytest.mark.parametrize(
    ("height", "width"), [*((side, side) for side in range(1, 10)), (1, 9), (9, 1), (3, 20)]
)
def test_takes_any_size(tiny_restormer: Restormer, height: int, width: int) -> None:
    x = image(2, 3, height, width)
    output = tiny_restormer(x)
    assert output.shape == x.shape
    assert output.isfinite().all()
    whole = tiny_restormer(reflect_pad_to_multiple(x, 8))
    torch.testing.assert_close(output, whole[..., :height, :width])


def test_images_of_a_batch_do_not_mix(tiny_restormer: Restormer) -> None:
    x = image(3, 3, 16, 24)
    one_by_one = torch.cat([tiny_restormer(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(tiny_restormer(x), one_by_one)


# --- hyper-parameters from a state dict

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "as is": {},
    "gray": {"in_channels": 1, "out_channels": 1},
    "dual-pixel": {"in_channels": 6, "out_channels": 3, "dual_pixel": True, "bias": True},
    "biased convolutions": {"bias": True},
    "bias-free norm": {"norm_bias": False},
    "both biases": {"bias": True, "norm_bias": True},
    "blocks": {"num_blocks": [2, 1, 3, 4], "num_refinement_blocks": 5},
    "no refinement": {"num_refinement_blocks": 0},
    "eleven blocks": {"num_blocks": [11, 1, 1, 1]},
    "heads": {"heads": [2, 4, 8, 8]},
    "one head": {"heads": [1, 1, 1, 1]},
    "dim 10": {"dim": 10, "heads": [1, 2, 4, 8], "ffn_expansion_factor": 2.0},
}


def assert_read_back(model: Restormer) -> None:
    state = model.state_dict()
    assert hyperparameters_from(state) == model.hyperparameters
    assert recognise(state, "x.pth").name == "restormer"
    again = build_from_state(state, "x.pth")
    assert again.hyperparameters == model.hyperparameters
    assert not again.training
    x = image(1, model.in_channels, 8, 16)
    assert torch.equal(again(x), model(x))
    assert again(x).shape == (1, model.out_channels, 8, 16)


@pytest.mark.parametrize("changes", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_hyperparameters_are_read_back(make_restormer: MakeRestormer, changes: dict[str, Any]) -> None:
    assert_read_back(make_restormer(**changes))


@pytest.mark.parametrize("factor", [1.0, 1.5, 2.0, 2.66, 3.0, 4.0])
def test_usual_expansion_factors_are_read_back(make_restormer: MakeRestormer, factor: float) -> None:
    with torch.device("meta"):
        model = Restormer(dim=48, num_blocks=[1, 1, 1, 1], ffn_expansion_factor=factor)
    assert hyperparameters_from(model.state_dict())["ffn_expansion_factor"] == factor


@pytest.mark.parametrize("dim", [8, 10, 24, 48, 52])
@pytest.mark.parametrize("factor", [0.5, 1.1, 2.333, 2.6667, math.pi, 8 / 3, 17 / 24, 3.999])
def test_odd_expansion_factors_give_the_same_widths(dim: int, factor: float) -> None:
    with torch.device("meta"):
        model = Restormer(dim=dim, num_blocks=[1, 1, 1, 1], heads=[1, 1, 2, 2], ffn_expansion_factor=factor)
        read = hyperparameters_from(model.state_dict())
        again = Restormer(**read)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


def test_hyperparameters_are_plain_numbers(tiny_restormer: Restormer) -> None:
    read = hyperparameters_from(tiny_restormer.state_dict())
    flat = [v for value in read.values() for v in (value if isinstance(value, list) else [value])]
    assert {type(value) for value in flat} <= {int, float, bool}


# --- errors


def one_line(caught: pytest.ExceptionInfo[CheckpointError]) -> str:
    message = str(caught.value)
    assert message.startswith("x.pth")
    assert "\n" not in message
    return message


def test_unknown_architecture_names_the_closest_and_what_differs(tiny_restormer: Restormer) -> None:
    state = tiny_restormer.state_dict()
    state["head.weight"] = state.pop("output.weight")
    del state["latent.0.attn.temperature"]
    with pytest.raises(CheckpointError) as caught:
        build_from_state(state, "x.pth")
    message = one_line(caught)
    assert "closest is restormer" in message
    assert "has no latent.0.attn.temperature, output.weight" in message
    assert "patch_embed.proj.weight" in message  # what it does begin with
    assert f"Supported: {', '.join(family_names())}" in message


def test_nothing_in_common_with_any_architecture() -> None:
    with pytest.raises(CheckpointError, match="no key of theirs") as caught:
        recognise({"layer1.conv.weight": torch.ones(1)}, "x.pth")
    assert "its first keys are layer1.conv.weight" in one_line(caught)


def test_missing_and_unexpected_keys(tiny_restormer: Restormer) -> None:
    state = tiny_restormer.state_dict()
    state["refinement.0.ffn.dw_conv.weight"] = state.pop("refinement.0.ffn.dwconv.weight")
    with pytest.raises(CheckpointError) as caught:
        build_from_state(state, "x.pth")
    message = one_line(caught)
    assert "1 missing: refinement.0.ffn.dwconv.weight" in message
    assert "1 unexpected: refinement.0.ffn.dw_conv.weight" in message
    assert "(meant refinement.0.ffn.dwconv.weight?)" in message


def test_wrong_shape_quotes_both(tiny_restormer: Restormer) -> None:
    state = tiny_restormer.state_dict()
    state["decoder_level2.0.attn.project_out.weight"] = torch.zeros(16, 15, 1, 1)
    with pytest.raises(CheckpointError) as caught:
        build_from_state(state, "x.pth")
    message = one_line(caught)
    assert "decoder_level2.0.attn.project_out.weight" in message
    assert "(16, 15, 1, 1) where (16, 16, 1, 1) is expected" in message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_embed.proj.weight", torch.zeros(7)),
        ("latent.0.attn.temperature", torch.tensor(1.0)),
        ("encoder_level2.0.ffn.project_out.weight", torch.zeros(16)),
        ("patch_embed.proj.weight", torch.zeros(0, 3, 3, 3)),
        ("output.weight", torch.tensor(1.0)),
        ("encoder_level1.0.attn.temperature", torch.zeros(0, 1, 1)),
    ],
)
def test_unreadable_hyperparameters_are_a_checkpoint_error(
    tiny_restormer: Restormer, key: str, value: Tensor
) -> None:
    state = tiny_restormer.state_dict() | {key: value}
    with pytest.raises(CheckpointError) as caught:
        build_from_state(state, "x.pth")
    one_line(caught)
