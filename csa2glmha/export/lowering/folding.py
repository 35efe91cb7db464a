"""Folding what stands before and beside convolutions into their weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from csa2glmha.export.lowering.primitives import cast_like, maps_like, pixel_share

#: Runtimes lay maps out in blocks of this many channels (AVX-512, tensor cores); others compute as if the
#: last block were full, or, where the count is not even a multiple of 4, fall back to slow code.
CHANNEL_BLOCK = 16
_DEPTHWISE_MULTIPLE = 4


@dataclass(frozen=True)
class Affine:
    """What a layer norm does beside dividing by the deviation; see :func:`fold_affine`.

    Attributes:
        weight: (C,).
        bias: (C,) or None.
        subtract_mean: x itself is centred, not only the variance.
    """

    weight: Tensor
    bias: Tensor | None
    subtract_mean: bool


class Laid(nn.Module):
    """A layer with a form for each layout of maps in memory; both compute the same.

    ONNX Runtime keeps maps of convolutions in blocks of channels and gives all else the usual layout, where
    products with matrices are fastest. OpenVINO keeps maps channels-last: there whatever needs the pixels of
    a channel side by side is a copy of the map, and axes are moved for nothing.
    """

    channels_last = False


class UnitNorm(Laid):
    """Every pixel of (B, C, H, W) divided by its standard deviation over the channels.

    What else a layer norm does is left to the following convolution. Sums are taken in float32, since
    squares leave the range of half precision soon.

    Args:
        channels: C.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        # A product with this row is the mean over the channels: much faster in ONNX Runtime than its
        # reductions over an axis that is not the last.
        self.average: Tensor
        self.register_buffer("average", torch.full((1, 1, channels), 1 / channels))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        if self.channels_last:
            return cast_like(wide * _deviations(wide, self.eps)[1], x)
        mean = self.average @ wide.flatten(2)
        variance = (self.average @ wide.square().flatten(2) - mean.square()).clamp_min(0.0)
        return cast_like(wide * maps_like((variance + self.eps).rsqrt(), x), x)


class PooledNorm(Laid):
    """:class:`UnitNorm` that also pools what a layer norm would give, over the pixels.

    The pooled sums are products of the maps, and of their squares, which the variance needs anyway, with one
    row each: a fraction of the passes over normalised maps that they take the place of.

    Args:
        channels: C.
        eps: added to the variance.
        subtract_mean: the mean over the channels is subtracted from what is pooled; not from the result.
    """

    def __init__(self, channels: int, eps: float, subtract_mean: bool) -> None:
        super().__init__()
        self.eps, self.subtract_mean = eps, subtract_mean
        self.average: Tensor
        self.register_buffer("average", torch.full((1, 1, channels), 1 / channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to its quotient, and mean and mean square over the pixels of every channel, (B, C)."""
        if self.channels_last:
            return self._channels_last(x)
        wide, share = x.float(), pixel_share(x)
        rows, squares = wide.flatten(2), wide.square().flatten(2)
        mean = self.average @ rows
        scale = ((self.average @ squares - mean.square()).clamp_min(0.0) + self.eps).rsqrt()
        pooled = scale @ rows.transpose(1, 2)
        pooled_squares = scale.square() @ squares.transpose(1, 2)
        if self.subtract_mean:
            offset = mean * scale
            pooled_squares = (
                pooled_squares
                - (scale * offset) @ rows.transpose(1, 2) * 2.0
                + offset.square().sum(2, keepdim=True)
            )
            pooled = pooled - offset.sum(2, keepdim=True)
        result = cast_like(wide * maps_like(scale, x), x)
        return result, (pooled * share).squeeze(1), (pooled_squares * share).squeeze(1)

    def _channels_last(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float()
        mean, scale = _deviations(wide, self.eps)
        result = wide * scale
        pooled = result - mean * scale if self.subtract_mean else result
        return cast_like(result, x), pooled.mean((2, 3)), pooled.square().mean((2, 3))


def _deviations(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Of every pixel of (B, C, H, W) the mean over the channels and one over their deviation."""
    mean = x.mean(1, keepdim=True)
    variance = (x.square().mean(1, keepdim=True) - mean.square()).clamp_min(0.0)
    return mean, (variance + eps).rsqrt()


def fold_affine(weight: Tensor, bias: Tensor | None, affine: Affine) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a pointwise convolution that follows :class:`UnitNorm` in place of a layer norm.

    Args:
        weight: (G, C).
        bias: (G,) or None.
        affine: of the layer norm.
    """
    if affine.bias is not None:
        shift = weight @ affine.bias
        bias = shift if bias is None else bias + shift
    weight = weight * affine.weight
    if affine.subtract_mean:
        # W (x - mean) is W x with the mean of every row of W subtracted from it.
        weight = weight - weight.mean(1, keepdim=True)
    return weight, bias


def conv(weight: Tensor, bias: Tensor | None, groups: int = 1, dilation: int = 1) -> nn.Conv2d:
    """A convolution of odd kernel size that keeps the maps' size, from its weight (G, C / groups, k, k)."""
    out_channels, in_channels, k, _ = weight.shape
    made = nn.Conv2d(
        in_channels * groups,
        out_channels,
        k,
        padding=dilation * (k // 2),
        dilation=dilation,
        groups=groups,
        bias=bias is not None,
    )
    made.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


def pointwise(weight: Tensor, bias: Tensor | None = None) -> nn.Conv2d:
    """A 1x1 convolution from its matrix (G, C)."""
    return conv(weight[:, :, None, None], bias)


def padded(tensor: Tensor | None, size: int, dim: int = 0) -> Tensor | None:
    """With zeros appended along one axis up to ``size``."""
    if tensor is None or tensor.shape[dim] == size:
        return tensor
    shape = list(tensor.shape)
    shape[dim] = size - tensor.shape[dim]
    return torch.cat((tensor, tensor.new_zeros(shape)), dim)


def depthwise_width(channels: int) -> int:
    """The channels to compute a depthwise convolution of so many channels with."""
    return channels if channels % _DEPTHWISE_MULTIPLE == 0 else round_up(channels, CHANNEL_BLOCK)


def round_up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def conv_pair(
    weight: Tensor,
    bias: Tensor | None,
    spread: Tensor | None,
    spread_bias: Tensor | None,
    width: int,
    dilation: int = 1,
) -> nn.Module:
    """A pointwise convolution (G, C) and a depthwise one (G, 1, k, k) after it, if any.

    They have ``width`` channels, of which those from G on are zero.
    """
    matrix = padded(weight, width)
    assert matrix is not None
    first = pointwise(matrix, padded(bias, width))
    if spread is None:
        return first
    kernels = padded(spread, width)
    assert kernels is not None
    return nn.Sequential(first, conv(kernels, padded(spread_bias, width), width, dilation))
