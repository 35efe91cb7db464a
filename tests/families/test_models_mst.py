from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.core.errors import CheckpointError, DataError
from csa2glmha.data.inputs.cassi import disperse
from csa2glmha.families.mst.network import MSMSA, MST, MaskGuidance
from csa2glmha.families.mst_plus_plus.network import SMSA, MSTPlusPlus
from csa2glmha.families.registry import build, build_from_state, recognise

# Small networks of every shape that is read from a state dict.
NETWORKS = [
    ("mst", {"dim": 4, "num_blocks": [1, 2, 1]}),
    ("mst", {"dim": 6, "num_blocks": [2, 1]}),
    ("mst", {"dim": 4, "num_blocks": [1, 1, 1, 2]}),
    ("mst_plus_plus", {"in_channels": 3, "n_feat": 5, "stage": 3, "num_blocks": [1, 1, 1]}),
    ("mst_plus_plus", {"in_channels": 1, "n_feat": 4, "stage": 1, "num_blocks": [1, 2, 3]}),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter, also those that start as zeros or ones, a value of its own."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    return module


def inputs_of(model: torch.nn.Module, height: int, width: int, batch: int = 1) -> list[torch.Tensor]:
    return [torch.rand(shape) for shape in model.input_shapes(height, width, batch)]


@pytest.mark.parametrize("name, hyperparameters", NETWORKS)
def test_recognised_from_the_state_dict_alone(name: str, hyperparameters: Any) -> None:
    model = randomised(build(name, hyperparameters))
    assert recognise(model.state_dict(), "x").name == name
    again = build_from_state(model.state_dict(), "x")
    assert again.hyperparameters == model.hyperparameters == hyperparameters
    inputs = inputs_of(model, 16, 24)
    with torch.no_grad():
        assert torch.equal(again(*inputs), model(*inputs))
        assert again(*inputs).shape == (1, model.out_channels, 16, 24)


def test_number_of_levels_is_limited_for_mst_plus_plus() -> None:
    with pytest.raises(ValueError, match="5 levels"):
        MSTPlusPlus(3, 4, 1, [1, 1, 1, 1, 1])
    state = build("mst_plus_plus", {"n_feat": 2, "num_blocks": [1, 1, 1]}).state_dict()
    for level in (2, 3):
        state[f"body.0.encoder_layers.{level}.0.blocks.0.0.rescale"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"x.ckpt.*mst_plus_plus.*num_blocks.*at most 4 items"):
        build_from_state(state, "x.ckpt")


def tokens_attention(module: Any, x: Tensor, factors: Tensor) -> Tensor:
    """S-MSA as the paper writes it, on (B, HW, C) tokens in float64, one head after the other."""
    batch, channels, height, width = x.shape
    x = x.flatten(2).transpose(1, 2)
    size = channels // module.heads
    q, k, v = (x @ getattr(module, f"to_{name}").weight.T for name in "qkv")
    guided = v * factors.flatten(2).transpose(1, 2)
    mixed = []
    for head in range(module.heads):
        part = slice(head * size, (head + 1) * size)
        columns = q[..., part] / q[..., part].norm(dim=1, keepdim=True)
        rows = k[..., part] / k[..., part].norm(dim=1, keepdim=True)
        attention = (rows.transpose(1, 2) @ columns * module.rescale[head]).softmax(-1)
        mixed.append((attention @ guided[..., part].transpose(1, 2)).transpose(1, 2))
    projected = torch.cat(mixed, -1) @ module.proj.weight.T + module.proj.bias
    result = projected.transpose(1, 2).reshape(batch, channels, height, width)
    maps = v.transpose(1, 2).reshape(batch, channels, height, width)
    first, _, second = module.pos_emb
    for step, conv in enumerate((first, second)):
        maps = F.conv2d(F.gelu(maps) if step else maps, conv.weight, padding=1, groups=channels)
    return result + maps


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_smsa_is_the_papers(heads: int) -> None:
    module = randomised(SMSA(8, heads)).double()
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    assert torch.allclose(module(x), tokens_attention(module, x, torch.ones_like(x)), atol=1e-10)


@pytest.mark.parametrize("masks", [1, 2])
def test_msmsa_multiplies_the_values_but_not_the_positional_embedding(masks: Any) -> None:
    module = randomised(MSMSA(8, 2, level=1)).double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    mask = torch.rand(masks, 8, 6, 6 + 8, dtype=torch.float64)
    factors = module.mask_attention(mask, 6).expand(2, -1, -1, -1)
    assert factors.std() > 0.1
    assert torch.allclose(module(x, mask), tokens_attention(module, x, factors), atol=1e-10)


def test_attention_of_a_map_without_signal_is_finite() -> None:
    module = SMSA(4, 1)
    module(torch.zeros(1, 4, 3, 3)).sum().backward()
    gradients = [parameter.grad for parameter in module.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_smsa_does_not_depend_on_memory_layout() -> None:
    module, x = randomised(SMSA(8, 2)), torch.randn(2, 8, 6, 5)
    assert torch.allclose(module(x), module(x.contiguous(memory_format=torch.channels_last)), atol=1e-5)


def test_mask_factors_by_hand() -> None:
    module = MaskGuidance(1, level=0).double()
    with torch.no_grad():
        module.conv1.weight.fill_(2)
        module.conv1.bias.fill_(1)
        module.conv2.weight.fill_(1)
        module.conv2.bias.fill_(-3)
        module.depth_conv.weight.zero_()
        module.depth_conv.weight[..., 2, 2] = 1
        module.depth_conv.bias.fill_(0.5)
    mask = torch.rand(1, 1, 4, 6, dtype=torch.float64)
    features = 2 * mask + 1
    expected = features * (1 + torch.sigmoid(features - 3 + 0.5))
    assert torch.allclose(module(mask, 6), expected)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_shift_back_at_256_rows_is_the_published_one(level: int) -> None:
    rows, channels = 256 >> level, 28 << level
    maps = torch.rand(1, channels, rows, 310 >> level)
    shifted = MaskGuidance(channels, level)._shift_back(maps, rows)
    for i in range(channels):
        # Published: step / (256 / rows)^2 per channel, rounded down.
        start = int(2 / (256 // rows) ** 2 * i)
        assert torch.equal(shifted[0, i], maps[0, i, :, start : start + rows])


@pytest.mark.parametrize("height, width", [(8, 12), (64, 20), (512, 4)])
def test_shift_back_undoes_dispersion_at_any_size(height: int, width: int) -> None:
    scene = torch.rand(1, 28, height, width)
    assert torch.equal(MaskGuidance(28, 0)._shift_back(disperse(scene), width), scene)


@pytest.mark.parametrize("levels", [1, 2, 3, 4, 5])
def test_lower_levels_have_room_for_every_shift(levels: int) -> None:
    """The width that the strided convolutions leave suffices, and neighbouring bands stay in order."""
    for dim in (4, 28, 31):
        model = MST(dim, [1] * levels).to("meta")
        size = 2 ** (levels - 1)
        inputs = [torch.empty(shape, device="meta") for shape in model.input_shapes(size, 3 * size)]
        assert model(*inputs).shape == inputs[0].shape
        for level in range(levels):
            width = (3 * size + 2 * (dim - 1)) >> level
            largest = 2 * (dim * 2**level - 1) // 4**level
            assert largest + (3 * size >> level) <= width


def test_mask_guidance_of_a_part_is_the_part_of_the_guidance() -> None:
    """The published form would shift by another step once the number of rows changes."""
    module = randomised(MaskGuidance(8, level=1))
    mask = torch.rand(1, 8, 40, 30)
    whole, part = module(mask, 20), module(mask[:, :, 8:28], 20)
    # The 5x5 depthwise convolution reaches over two rows.
    assert torch.allclose(whole[:, :, 10:26], part[:, :, 2:-2], atol=1e-5)


def test_one_mask_for_all_or_one_each() -> None:
    model = randomised(build("mst", {"dim": 4, "num_blocks": [1, 1]}))
    cubes, mask = inputs_of(model, 8, 10, batch=3)
    masks = torch.rand(3, *mask.shape[1:])
    with torch.no_grad():
        assert torch.allclose(model(cubes, mask), model(cubes, mask.expand(3, -1, -1, -1)), atol=1e-4)
        each = torch.cat([model(cubes[i : i + 1], masks[i : i + 1]) for i in range(3)])
        assert torch.allclose(model(cubes, masks), each, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(each, model(cubes, mask), atol=1e-2)


def test_mst_is_described_by_its_input_shapes() -> None:
    model = MST()
    assert model.input_names == ("input", "mask")
    assert model.input_shapes(256, 256, 5) == ((5, 28, 256, 256), (1, 28, 256, 310))
    assert model.input_shapes(660, 660) == ((1, 28, 660, 660), (1, 28, 660, 714))


@pytest.mark.parametrize(
    "cube, mask, message",
    [
        ((1, 4, 10, 16), (1, 4, 10, 22), r"\(1, 4, 10, 16\).*multiples of 4"),
        ((1, 4, 16, 10), (1, 4, 16, 16), r"\(1, 4, 16, 10\).*multiples of 4"),
        ((1, 5, 16, 16), (1, 5, 16, 24), r"\(1, 5, 16, 16\).*\(B, 4, H, W\)"),
        ((1, 4, 16, 16), (1, 4, 16, 16), r"mask.*\(1, 4, 16, 16\).*\(1, 4, 16, 22\)"),
        ((1, 4, 16, 16), (1, 4, 20, 22), r"mask.*\(1, 4, 20, 22\).*\(1, 4, 16, 22\)"),
        ((3, 4, 16, 16), (2, 4, 16, 22), r"mask.*\(2, 4, 16, 22\).*\(1, 4, 16, 22\)"),
    ],
)
def test_inputs_that_do_not_fit(cube: Any, mask: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        MST(4, [1, 1, 1])(torch.rand(cube), torch.rand(mask))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("height, width", [(41, 36), (8, 15), (3, 1)])
def test_mst_plus_plus_pads_by_reflection_and_crops(height: int, width: int) -> None:
    model = randomised(build("mst_plus_plus", {"n_feat": 4, "stage": 1}))
    image = torch.rand(2, 3, height, width)
    edges = [(0, -side % 8) for side in (height, width)]
    padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (0, 0), *edges), mode="reflect"))
    with torch.no_grad():
        output = model(image)
        assert output.shape == (2, 4, height, width)
        assert torch.allclose(output, model(padded)[..., :height, :width], atol=1e-4, rtol=1e-4)


def test_exported_programs_keep_their_sizes_open() -> None:
    dynamic = torch.export.Dim.DYNAMIC
    image_network = randomised(build("mst_plus_plus", {"n_feat": 4, "stage": 1, "num_blocks": [1, 1]}))
    cube_network = randomised(build("mst", {"dim": 4, "num_blocks": [1, 1]}))
    # PyTorch's check of a program's inputs wants both sizes, or neither, to be multiples of 8.
    cases = [
        (image_network, (21, 19), (33, 43), ({2: dynamic, 3: dynamic},)),
        (cube_network, (12, 16), (20, 8), ({2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO},) * 2),
    ]
    for model, example, other, sizes in cases:
        program = torch.export.export(model, tuple(inputs_of(model, *example)), dynamic_shapes=sizes)
        inputs = inputs_of(model, *other)
        assert torch.allclose(program.module()(*inputs), model(*inputs), atol=1e-4, rtol=1e-4)
