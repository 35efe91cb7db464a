from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.core.errors import UsageError
from csa2glmha.metrics.complexity import Complexity, count_complexity, format_macs, format_params


class Lambda(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def count(function: Callable[..., Any], *shapes: tuple[int, ...]) -> Complexity:
    return count_complexity(Lambda(function), *shapes)


def costs(result: Complexity) -> tuple[int, int]:
    return result.macs, result.flops


# --- operators, by hand -------------------------------------------------------------------------------------


def test_convolution_with_stride_and_bias() -> None:
    result = count_complexity(nn.Conv2d(3, 8, 3, stride=2, padding=1), (2, 3, 10, 12))
    outputs = 2 * 8 * 5 * 6
    assert result.macs == result.conv_macs == outputs * 3 * 9
    assert result.flops == 2 * outputs * 27 + outputs
    assert result.params == 8 * 3 * 9 + 8
    assert result.by_operator == {"convolution": outputs * 27}
    assert result.input_shapes == ((2, 3, 10, 12),)


def test_grouped_convolution_reads_only_its_group() -> None:
    result = count_complexity(nn.Conv2d(8, 12, 3, groups=4, bias=False), (1, 8, 6, 6))
    assert costs(result) == (12 * 16 * 2 * 9, 2 * 12 * 16 * 2 * 9)
    assert result.params == 12 * 2 * 9


def test_transposed_convolution_spreads_every_input() -> None:
    # Each of the 6 x 20 inputs meets 4/2 output channels times a 2 x 3 kernel.
    layer = nn.ConvTranspose2d(6, 4, (2, 3), stride=(2, 3), groups=2)
    result = count_complexity(layer, (1, 6, 4, 5))
    macs = 6 * 20 * 2 * 6
    assert costs(result) == (macs, 2 * macs + 4 * 8 * 15)
    assert result.conv_macs == macs


@pytest.mark.parametrize("shape", [(5,), (7, 5), (2, 7, 5)])
def test_linear_at_every_rank(shape: Any) -> None:
    rows = torch.Size(shape[:-1]).numel()
    with_bias = count_complexity(nn.Linear(5, 3), shape)
    assert costs(with_bias) == (rows * 15, rows * (30 + 3))
    assert costs(count_complexity(nn.Linear(5, 3, bias=False), shape)) == (rows * 15, rows * 30)
    assert with_bias.conv_macs == 0


@pytest.mark.parametrize(
    ("function", "shapes", "macs", "added"),
    [
        (torch.matmul, [(2, 4, 3, 5), (2, 4, 5, 7)], 2 * 4 * 3 * 5 * 7, 0),
        (torch.matmul, [(2, 4, 3, 5), (5, 7)], 2 * 4 * 3 * 5 * 7, 0),
        (torch.matmul, [(3, 5), (5,)], 15, 0),
        (torch.matmul, [(5,), (5,)], 5, 0),
        (lambda a, b: torch.einsum("bchw,dc->bdhw", a, b), [(2, 4, 3, 5), (6, 4)], 2 * 6 * 15 * 4, 0),
        (torch.addmm, [(3, 7), (3, 5), (5, 7)], 3 * 5 * 7, 3 * 7),
        (torch.addmv, [(3,), (3, 5), (5,)], 15, 3),
        (torch.baddbmm, [(2, 3, 7), (2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7, 2 * 3 * 7),
        (torch.addbmm, [(3, 7), (2, 3, 5), (2, 5, 7)], 2 * 3 * 5 * 7, 3 * 7),
    ],
)
def test_matrix_products(function: Callable[..., Any], shapes: Any, macs: int, added: int) -> None:
    result = count(function, *shapes)
    assert costs(result) == (macs, 2 * macs + added)
    assert result.conv_macs == 0
    assert result.uncounted == {}


@pytest.mark.parametrize(
    ("function", "flops"),
    [
        (lambda x: x.softmax(-1), 5 * 480),
        (lambda x: F.gelu(x), 480),
        (lambda x: x + 1, 480),
        (lambda x: x.clone().mul_(2).relu_(), 2 * 480),
        # Broadcasting: what is computed counts, not what is read.
        (lambda x: x[:, :, :, :1] * x[:, :, :1], 480),
        (lambda x: x.mean((2, 3)), 480),
        (lambda x: x.amax(1), 480),
        (lambda x: x.var(1, unbiased=False), 4 * 480),
        # The norm (2 a value), its clamping (one a row, 80 rows) and the division.
        (lambda x: F.normalize(x, dim=-1), 2 * 480 + 80 + 480),
        (lambda x: F.layer_norm(x, (6,)), 5 * 480),
        (lambda x: F.layer_norm(x, (6,), torch.ones(6)), 6 * 480),
        (lambda x: F.group_norm(x, 2, torch.ones(4), torch.ones(4)), 7 * 480),
        (lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)), 2 * 480),
        (lambda x: F.instance_norm(x), 7 * 480),
        (lambda x: F.max_pool2d(x, (5, 3)), 480),
        (lambda x: F.avg_pool2d(x, 2, stride=1), 4 * (4 * 4 * 4 * 5)),
        (lambda x: F.adaptive_avg_pool2d(x, 1), 480),
        (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), 7 * 4 * 480),
    ],
)
def test_other_arithmetic_has_flops_and_no_macs(function: Callable[..., Any], flops: int) -> None:
    result = count(function, (4, 4, 5, 6))
    assert costs(result) == (0, flops)
    assert result.by_operator == {}
    assert result.uncounted == {}


def test_data_movement_is_free() -> None:
    def move(x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1), mode="reflect")
        x = F.pixel_shuffle(F.pixel_unshuffle(F.pad(x, (0, 2, 0, 2)), 2), 2)
        x = torch.cat([x.permute(0, 1, 3, 2).contiguous(), torch.zeros_like(x.transpose(2, 3))], 1)
        first, second = x.roll(1, 2).flip(3).chunk(2, dim=1)
        second = torch.stack([first, second])[1].half().float().repeat(2, 1, 1, 1)
        return torch.where(torch.ones(1, dtype=torch.bool), second.reshape(-1)[[0, 2]], torch.zeros(1))

    result = count(move, (2, 4, 6, 6))
    assert costs(result) == (0, 0)
    assert result.uncounted == {}


def test_attention_costs_the_same_however_it_is_written() -> None:
    # (B, h, L, E) queries, (B, h, S, E) keys, (B, h, S, V) values.
    shapes = (2, 3, 5, 4), (2, 3, 6, 4), (2, 3, 6, 7)
    macs = 2 * 3 * 5 * 6 * (4 + 7)
    by_hand = count(lambda q, k, v: (q @ k.transpose(-1, -2)).softmax(-1) @ v, *shapes)
    assert by_hand.macs == macs
    assert count(F.scaled_dot_product_attention, *shapes).macs == macs


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)[0],
        lambda q, k, v: torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0],
        lambda q, k, v: torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, False)[0],
    ],
)
def test_fused_attention(function: Callable[..., Any]) -> None:
    result = count(function, (2, 3, 5, 8), (2, 3, 6, 8), (2, 3, 6, 8))
    logits = 2 * 3 * 5 * 6
    assert costs(result) == (logits * 16, 2 * logits * 16 + 6 * logits)
    assert result.uncounted == {}


def test_an_operator_without_a_handler_is_listed() -> None:
    result = count(lambda x: torch.fft.rfft2(torch.fft.rfft2(x).abs()).real + x[..., :2], (1, 2, 4, 4))
    assert result.uncounted == {"_fft_r2c": 2}
    assert result.macs == 0
    assert result.flops > 0


def test_an_operator_of_another_library_is_listed_by_its_full_name() -> None:
    with torch.library._scoped_library("csa2glmha_test", "DEF") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: torch.empty_like(x), "Meta")
        result = count(lambda x: torch.ops.csa2glmha_test.twice(x), (2, 3))
    assert result.uncounted == {"csa2glmha_test::twice": 1}


# --- modules ------------------------------------------------------------------------------------------------


class ChannelAttention(nn.Module):
    """A channel-attention block in its smallest form: (B, C, H, W) to the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.dwconv = nn.Conv2d(3 * dim, 3 * dim, 3, padding=1, groups=3 * dim, bias=False)
        self.project_out = nn.Conv2d(dim, dim, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, dim, height, width = x.shape
        qkv = self.dwconv(self.qkv(x)).reshape(batch, 3, self.heads, dim // self.heads, height * width)
        q, k, v = qkv.unbind(1)
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        out = logits.softmax(-1) @ v
        return self.project_out(out.reshape(batch, dim, height, width))


def test_channel_attention_by_hand() -> None:
    c, heads, pixels = 8, 2, 6 * 10
    result = count_complexity(ChannelAttention(c, heads), (1, c, 6, 10))
    convolutions = pixels * (3 * c * c + 9 * 3 * c + c * c)
    products = 2 * pixels * c * (c // heads)
    logits = c * (c // heads)
    norms = 2 * (2 * c * pixels + c + c * pixels)
    assert result.by_operator == {"convolution": convolutions, "bmm": products}
    assert result.conv_macs == convolutions
    assert result.macs == convolutions + products
    assert result.flops == 2 * result.macs + norms + logits + 5 * logits
    assert result.params == 3 * c * c + 27 * c + c * c + heads
    assert result.uncounted == {}


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1, bias=False), nn.ReLU()), nn.Identity()])
        self.head = nn.Conv2d(4, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x) * 2


def test_modules_hold_themselves_and_everything_below() -> None:
    result = count_complexity(Nested(), (1, 4, 5, 5))
    macs = {name: (module.macs, module.flops, module.params) for name, module in result.modules.items()}
    assert macs == {
        "": (600, 1200 + 100 + 50, 24),
        # A ModuleList is never called itself.
        "blocks": (400, 800 + 100, 16),
        "blocks.0": (400, 800 + 100, 16),
        "blocks.0.0": (400, 800, 16),
        "blocks.0.1": (0, 100, 0),
        "blocks.1": (0, 0, 0),
        "head": (200, 400, 8),
    }
    assert result.modules["blocks.0.1"].type == "ReLU"
    assert result.modules["blocks.0"].name == "blocks.0"
    assert result.modules["blocks.0"].conv_macs == 400
    assert (result.macs, result.flops, result.params) == macs[""]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x))


def test_a_module_called_twice_costs_twice_and_has_its_parameters_once() -> None:
    result = count_complexity(Recurrent(), (3, 4))
    assert result.macs == result.modules["layer"].macs == 2 * 3 * 16
    assert result.params == result.modules["layer"].params == 16


def test_a_shared_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    result = count_complexity(model, (3, 4))
    assert result.macs == 2 * 3 * 16
    assert result.params == 16
    assert [result.modules[name].params for name in ("0", "1")] == [16, 16]


def test_a_shared_module_counts_below_its_caller() -> None:
    shared = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared, shared))
    modules = count_complexity(model, (1, 4)).modules
    assert {name: module.macs for name, module in modules.items()} == {
        "": 48,
        "0": 16,
        "0.0": 16,
        "1": 32,
        "1.0": 32,
        "1.1": 0,
    }


def test_the_work_of_hooks_belongs_to_their_module() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    model[0].register_forward_hook(lambda module, inputs, output: output + 1)
    assert count_complexity(model, (3, 4)).modules["0"].flops == 2 * 48 + 12 + 12


def test_buffers_are_not_parameters() -> None:
    assert count_complexity(nn.BatchNorm2d(4), (1, 4, 3, 3)).params == 8


# --- the model and its inputs -------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    before = copy.deepcopy(model.state_dict())
    count_complexity(model, (2, 3, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert next(model.parameters()).device.type == "cpu"


def test_counts_inference_whatever_the_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    expected = count_complexity(model.eval(), (2, 3, 4, 4))
    assert count_complexity(model.train(), (2, 3, 4, 4)) == expected
    # Under inference mode, operators such as linear are not taken apart before they are seen.
    model = nn.Sequential(ChannelAttention(4, 2), nn.Linear(6, 5), nn.LayerNorm(5))
    expected = count_complexity(model, (1, 4, 6, 6))
    with torch.inference_mode():
        assert count_complexity(model, (1, 4, 6, 6)) == expected


def test_tensors_and_shapes_count_alike() -> None:
    model = ChannelAttention(4, 2)
    assert count_complexity(model, torch.rand(1, 4, 6, 6)) == count_complexity(model, (1, 4, 6, 6))


def test_shapes_take_the_type_of_the_model() -> None:
    assert count_complexity(nn.Conv2d(3, 4, 1).double(), (1, 3, 2, 2)).macs == 48


class KeepsTensors(nn.Module):
    """Has tensors that are neither parameters nor buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.constant = torch.ones(4)
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.layer(x) * self.constant + torch.zeros(4)
        return self.last


def test_tensors_kept_by_modules_do_not_matter() -> None:
    model = KeepsTensors()
    expected = count_complexity(model, (2, 4))
    kept = model(torch.rand(2, 4))  # has a gradient function, so it cannot be deep-copied
    assert count_complexity(model, (2, 4)) == expected
    assert model.last is kept


def test_a_large_model_needs_no_memory_for_activations() -> None:
    # 2^20 x 2^20 pixels of 64 channels.
    side = 1 << 20
    result = count_complexity(nn.Conv2d(64, 64, 3, padding=1, bias=False), (1, 64, side, side))
    assert result.macs == side * side * 64 * 64 * 9


@pytest.mark.parametrize("shape", [(), (1, 0, 4), (1, -3, 4), (1, 3.5, 4), (1, "3", 4)])
def test_bad_shapes_are_refused(shape: Any) -> None:
    with pytest.raises(UsageError, match="positive integers") as caught:
        count_complexity(nn.Identity(), shape)
    assert repr(shape) in str(caught.value)


def test_inputs_that_the_model_refuses_are_named() -> None:
    with pytest.raises(UsageError, match=r"cannot count Conv2d on input shape \(1, 5, 4, 4\)") as caught:
        count_complexity(nn.Conv2d(3, 4, 1), (1, 5, 4, 4))
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match=r"\(none\)"):
        count_complexity(nn.Conv2d(3, 4, 1))


# --- formats ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "macs", "params"),
    [
        (0, "0", "0"),
        (999, "999", "999"),
        (1000, "1.0 k", "1.00 k"),
        (922_648, "922.6 k", "922.65 k"),
        (999_994, "1.0 M", "999.99 k"),
        (999_996, "1.0 M", "1.00 M"),
        (26_126_644, "26.1 M", "26.13 M"),
        (154_882_039_808, "154.9 G", "154.88 G"),
        (1_549_000_000_000, "1549.0 G", "1549.00 G"),
        (-7_700_000_000, "-7.7 G", "-7.70 G"),
    ],
)
def test_formats(value: Any, macs: str, params: str) -> None:
    assert format_macs(value) == macs
    assert format_params(value) == params
