"""How the blocks of transposed attention are deployed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention.glmha import GLMHA
from csa2glmha.export.lowering.attention import DeployedGLMHA
from csa2glmha.export.lowering.folding import (
    CHANNEL_BLOCK,
    Affine,
    PooledNorm,
    UnitNorm,
    conv_pair,
    fold_affine,
    padded,
    pointwise,
    round_up,
)
from csa2glmha.export.lowering.primitives import common_source, unshuffle
from csa2glmha.families.transposed.blocks import (
    GDFN,
    LAYER_NORM_EPS,
    ChannelLayerNorm,
    Downsample,
    TransformerBlock,
)


class DeployedGDFN(nn.Module):
    """The feed-forward network behind a :class:`UnitNorm`, gate and value in convolutions of their own.

    So nothing is split, and their hidden channels are padded with zeros to a whole number of blocks: the
    published widths (127, 255, 510, 1021) would send the depthwise convolutions through slow code.
    """

    def __init__(self, layer: GDFN, affine: Affine) -> None:
        super().__init__()
        hidden = layer.project_out.in_channels
        width = round_up(hidden, CHANNEL_BLOCK)
        weight, bias = fold_affine(layer.project_in.weight[:, :, 0, 0], layer.project_in.bias, affine)
        self.gate, self.value = (
            conv_pair(
                weight[part],
                None if bias is None else bias[part],
                layer.dwconv.weight[part],
                None if layer.dwconv.bias is None else layer.dwconv.bias[part],
                width,
            )
            for part in (slice(hidden), slice(hidden, None))
        )
        output = padded(layer.project_out.weight[:, :, 0, 0], width, dim=1)
        assert output is not None
        self.project_out = pointwise(output, layer.project_out.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = common_source(x)
        return self.project_out(F.gelu(self.gate(x)) * self.value(x))


class DeployedBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x)), both norms without their affine part.

    A norm before a skipped layer is left out with it.
    """

    def __init__(self, block: TransformerBlock) -> None:
        super().__init__()
        self.norm1: UnitNorm | PooledNorm | None = None
        self.attn: DeployedGLMHA | None = None
        self.norm2: UnitNorm | None = None
        self.ffn: DeployedGDFN | None = None
        if isinstance(block.attn, GLMHA):
            affine = _affine(block.norm1.body)
            channels = block.attn.config.channels
            self.norm1 = (
                UnitNorm(channels, LAYER_NORM_EPS)
                if block.attn.guide is None
                else PooledNorm(channels, LAYER_NORM_EPS, affine.subtract_mean)
            )
            self.attn = DeployedGLMHA(block.attn, affine)
        if isinstance(block.ffn, GDFN):
            affine = _affine(block.norm2.body)
            self.norm2 = UnitNorm(len(affine.weight), LAYER_NORM_EPS)
            self.ffn = DeployedGDFN(block.ffn, affine)

    def forward(self, x: Tensor) -> Tensor:
        if self.attn is not None and self.norm1 is not None:
            if isinstance(self.norm1, PooledNorm):
                normed, mean, mean_square = self.norm1(x)
                x = x + self.attn(normed, pooled=(mean, mean_square))
            else:
                x = x + self.attn(self.norm1(x))
        if self.ffn is not None and self.norm2 is not None:
            x = x + self.ffn(self.norm2(x))
        return x


class DeployedDownsample(nn.Module):
    """(B, C, H, W) to (B, 2C, H/2, W/2), the number of channels known to the trace."""

    def __init__(self, layer: Downsample) -> None:
        super().__init__()
        convolution, shuffle = layer.body
        assert isinstance(convolution, nn.Conv2d) and isinstance(shuffle, nn.PixelUnshuffle)
        self.conv, self.factor = convolution, shuffle.downscale_factor

    def forward(self, x: Tensor) -> Tensor:
        return unshuffle(self.conv(x), self.factor, self.conv.out_channels)


def _affine(norm: ChannelLayerNorm) -> Affine:
    return Affine(norm.weight, norm.bias, subtract_mean=norm.bias is not None)


LOWERING = {TransformerBlock: DeployedBlock, Downsample: DeployedDownsample}
