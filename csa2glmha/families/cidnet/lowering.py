"""How the parts of HVI-CIDNet are deployed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csa2glmha.attention.glmha import GLMHA
from csa2glmha.export.lowering.attention import DeployedGLMHA
from csa2glmha.export.lowering.folding import (
    CHANNEL_BLOCK,
    Affine,
    PooledNorm,
    UnitNorm,
    conv,
    conv_pair,
    fold_affine,
    padded,
    pointwise,
    round_up,
)
from csa2glmha.export.lowering.primitives import common_source
from csa2glmha.families.cidnet.network import IEL, LAYER_NORM_EPS, LCA
from csa2glmha.families.family import Lowering


class DeployedIEL(nn.Module):
    """The feed-forward network behind a :class:`UnitNorm`, its halves in convolutions of their own.

    Their hidden channels are padded with zeros to a whole number of blocks.
    """

    def __init__(self, layer: IEL, affine: Affine) -> None:
        super().__init__()
        hidden = layer.project_out.in_channels
        width = round_up(hidden, CHANNEL_BLOCK)
        weight, bias = fold_affine(layer.project_in.weight[:, :, 0, 0], None, affine)
        self.first, self.second = (
            conv_pair(
                weight[part], None if bias is None else bias[part], layer.dwconv.weight[part], None, width
            )
            for part in (slice(hidden), slice(hidden, None))
        )
        self.first_bend, self.second_bend = (_wider(each, width) for each in (layer.dwconv1, layer.dwconv2))
        output = padded(layer.project_out.weight[:, :, 0, 0], width, dim=1)
        assert output is not None
        self.project_out = pointwise(output)

    def forward(self, x: Tensor) -> Tensor:
        x = common_source(x)
        first, second = self.first(x), self.second(x)
        first = torch.tanh(self.first_bend(first)) + first
        second = torch.tanh(self.second_bend(second)) + second
        return self.project_out(first * second)


def _wider(layer: nn.Conv2d, width: int) -> nn.Conv2d:
    weight = padded(layer.weight, width)
    assert weight is not None
    return conv(weight, None, groups=width)


class DeployedLCA(nn.Module):
    """Attention and feed-forward network, the norm before each without its affine part.

    A norm before a skipped layer is left out with it.
    """

    def __init__(self, block: LCA) -> None:
        super().__init__()
        affine = Affine(block.norm.weight, block.norm.bias, subtract_mean=True)
        channels = len(affine.weight)
        self.norm = UnitNorm(channels, LAYER_NORM_EPS)
        # Named as in the network, so that a profile tells whose time is whose.
        self.ffn: DeployedGLMHA | None = None
        self.pooled: PooledNorm | None = None
        self.gdfn: DeployedIEL | None = None
        if isinstance(block.ffn, GLMHA):
            self.ffn = DeployedGLMHA(block.ffn, affine, affine)
            if block.ffn.guide is not None:
                self.pooled = PooledNorm(channels, LAYER_NORM_EPS, affine.subtract_mean)
        if isinstance(block.gdfn, IEL):
            self.gdfn = DeployedIEL(block.gdfn, affine)
        self.residual = block.residual

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        if self.ffn is not None:
            x = x + self.attended(self.ffn, x, other)
        if self.gdfn is None:
            return x
        y = self.gdfn(self.norm(x))
        return x + y if self.residual else y

    def attended(self, attention: DeployedGLMHA, x: Tensor, other: Tensor) -> Tensor:
        """The attention of queries from x and of keys and values from the other map."""
        if self.pooled is None:
            return attention(self.norm(other), self.norm(x))
        source, mean, square = self.pooled(other)
        queries, query_mean, query_square = self.pooled(x)
        pooled = torch.cat((mean, query_mean), 1), torch.cat((square, query_square), 1)
        return attention(source, queries, pooled)


LOWERING: Lowering = {LCA: DeployedLCA}
