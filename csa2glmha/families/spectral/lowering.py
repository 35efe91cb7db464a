"""How the parts of MST and MST++ are deployed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from csa2glmha.attention.canonical import expanded_power
from csa2glmha.core.dispersion import DISPERSION
from csa2glmha.export.lowering.attention import DeployedCore, copied
from csa2glmha.export.lowering.folding import (
    Affine,
    UnitNorm,
    conv,
    depthwise_width,
    fold_affine,
    padded,
    pointwise,
)
from csa2glmha.export.lowering.primitives import cast_like, pixel_share, shift_back
from csa2glmha.families.spectral.attention import MaskedSpectralGLMHA, SpectralGLMHA
from csa2glmha.families.spectral.blocks import NormedFeedForward
from csa2glmha.families.spectral.mst import MaskGuidance


class DeployedFeedForward(nn.Module):
    """The feed-forward network with the layer norm's affine part in its first convolution."""

    def __init__(self, layer: NormedFeedForward) -> None:
        super().__init__()
        first, *rest = layer.fn.net
        assert isinstance(first, nn.Conv2d)
        affine = Affine(layer.norm.weight, layer.norm.bias, subtract_mean=True)
        self.norm = UnitNorm(first.in_channels, layer.norm.eps)
        self.net = nn.Sequential(pointwise(*fold_affine(first.weight[:, :, 0, 0], first.bias, affine)), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.norm(x))


class _DeployedSpectral(DeployedCore):
    """The logits, from second moments, and the positional embedding, padded where that is faster."""

    def __init__(self, layer: SpectralGLMHA) -> None:
        super().__init__(layer)
        self.subspace = None
        if layer.projection is not None:
            self.subspace = nn.Parameter(
                layer.projection.weight.detach().view(self.config.heads, -1, self.config.channels).clone()
            )
        self.expand_rows = None if layer.expand_rows is None else copied(layer.expand_rows)
        self.expand_columns = None if layer.expand_columns is None else copied(layer.expand_columns)
        self.width = self.config.heads * self.config.head_channels
        self.excess = depthwise_width(self.width) - self.width
        self.values = _widened(layer.values, self.excess)
        self.pos_emb = _widened(layer.pos_emb, self.excess)
        # One Gram matrix of the input gives the logits, in the subspace too, and the squares that the guide
        # pools. It takes more multiply-accumulates than maps of Z and a sum of squares, but those two come
        # with copies between layouts of memory and passes over the maps: both together took longer.
        self.identity: Tensor
        self.register_buffer("identity", torch.eye(self.config.channels))
        # The convolution before the sum adds the bias for nothing, the sum in a pass over the maps.
        if self.output_bias is not None:
            _add_bias(self.pos_emb, self.output_bias)
            self.output_bias = None

    def weights(self, x: Tensor) -> Tensor:
        """The matrix that mixes the attention's values: (B, out_channels, heads * rank_v)."""
        gram, pooled, share = None, None, pixel_share(x)
        if self.guide is not None or self.expand_rows is not None:
            rows = x.flatten(2).float()
            gram = rows @ rows.transpose(1, 2) * share
            if self.guide is not None:
                pooled = rows.sum(2) * share, (gram * self.identity).sum(2)
        strengths, key_gates, value_gates = self.guidance(x, pooled)
        logits = None
        if gram is not None and self.expand_rows is not None:
            logits = self.logits(gram.unsqueeze(1), self.key_gate(key_gates))
        return self.folded(self.attention(logits, strengths), value_gates)

    def logits(self, gram: Tensor, gate: Tensor | None) -> Tensor:
        """From second moments of the input: (B, 1, C, C)."""
        assert self.expand_rows is not None and self.expand_columns is not None
        if self.subspace is not None:
            gram = self.subspace @ gram @ self.subspace.transpose(1, 2)
        columns = self.expand_columns if gate is None else self.expand_columns * gate
        rows = self.expand_rows @ gram
        row_power = (rows * self.expand_rows).sum(-1, keepdim=True)
        column_power = expanded_power(columns, gram).unsqueeze(-1)
        return self.normalised(rows @ columns.transpose(2, 3), row_power, column_power)

    def narrowed(self, maps: Tensor) -> Tensor:
        """Without the channels that were added."""
        return maps.split([self.width, self.excess], dim=1)[0] if self.excess else maps


class DeployedSMSA(_DeployedSpectral):
    """S-MSA's replacement: the projection of the attention's values is folded as the output's is.

    So the attention reads the input itself, and the values for the positional embedding are its alone.
    """

    def __init__(self, layer: SpectralGLMHA) -> None:
        super().__init__(layer)
        matrix = _matrix(layer.values)
        if layer.reduce_values is not None:
            matrix = _blocks(layer.reduce_values) @ matrix
        self.generate = nn.Parameter(matrix.detach().clone())
        # Reading the input costs C^2 a pixel, generating maps of heads * rank_v channels and mixing them
        # twice that for each.
        self.direct = 2 * matrix.shape[0] >= matrix.shape[1]
        if not self.direct:
            self.low_rank = pointwise(matrix)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        if self.direct:
            attended = self.mixed(weights @ self.generate, x.flatten(2), x)
        else:
            attended = self.mixed(weights, self.low_rank(x).flatten(2), x)
        return attended + self.narrowed(self.pos_emb(self.values(x)))


class DeployedMSMSA(_DeployedSpectral):
    """MS-MSA's replacement: the attention sees the values times the mask's factors."""

    def __init__(self, layer: MaskedSpectralGLMHA) -> None:
        super().__init__(layer)
        self.mm = DeployedMaskGuidance(layer.mm) if isinstance(layer.mm, MaskGuidance) else layer.mm
        reduce = layer.reduce_values
        self.reduce = None if reduce is None else nn.Parameter(_blocks(reduce).detach().clone())

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        values = self.values(x)
        guided = self.narrowed(values)
        guided = guided * cast_like(self.mm(mask, x), guided)
        guided = guided.flatten(2)
        if self.reduce is not None:
            guided = cast_like(self.reduce, guided) @ guided
        attended = self.mixed(self.weights(x), guided, x)
        return attended + self.narrowed(self.pos_emb(values))


class DeployedMaskGuidance(nn.Module):
    """As the original, but the width comes from a map."""

    def __init__(self, guidance: MaskGuidance) -> None:
        super().__init__()
        self.conv1, self.conv2 = guidance.conv1, guidance.conv2
        self.depth_conv = guidance.depth_conv
        self.shifts: Tensor
        channels = guidance.conv1.out_channels
        self.register_buffer("shifts", torch.arange(channels) * DISPERSION // 4**guidance.level)

    def forward(self, mask: Tensor, like: Tensor) -> Tensor:
        features = self.conv1(mask)
        gate = torch.sigmoid(self.depth_conv(self.conv2(features)))
        return shift_back(features + features * gate, self.shifts, like)


def _add_bias(layers: nn.Module, bias: Tensor) -> None:
    """Add a bias (C,) to the results of convolutions whose last has at least C channels."""
    *_, last = (module for module in layers.modules() if isinstance(module, nn.Conv2d))
    wide = padded(bias, last.out_channels)
    assert wide is not None
    last.bias = nn.Parameter((wide if last.bias is None else wide + last.bias).detach())


def _matrix(values: nn.Module) -> Tensor:
    """All of the values' projection: (heads * c, C)."""
    if isinstance(values, nn.Conv2d):
        return values.weight[:, :, 0, 0]
    generate, expand = values.children()
    assert isinstance(generate, nn.Conv2d) and isinstance(expand, nn.Conv2d)
    return _blocks(expand) @ generate.weight[:, :, 0, 0]


def _blocks(grouped: nn.Conv2d) -> Tensor:
    """The matrix of a grouped pointwise convolution, zero outside its blocks."""
    return torch.block_diag(*grouped.weight[:, :, 0, 0].chunk(grouped.groups))


def _widened(module: nn.Module, excess: int) -> nn.Module:
    """The same with so many more channels, zero, behind the last convolution and all depthwise ones."""
    module = copy.deepcopy(module)
    if not excess:
        return module
    if isinstance(module, nn.Conv2d):
        return _wider(module, excess)
    layers = list(module.children())
    depthwise = [isinstance(layer, nn.Conv2d) and layer.weight.shape[1] == 1 for layer in layers]
    return nn.Sequential(
        *(
            _wider(layer, excess)
            if isinstance(layer, nn.Conv2d) and (wide or index == len(layers) - 1)
            else layer
            for index, (layer, wide) in enumerate(zip(layers, depthwise, strict=True))
        )
    )


def _wider(layer: nn.Conv2d, excess: int) -> nn.Conv2d:
    if layer.groups == 1 or layer.weight.shape[1] == 1:
        weight, groups = layer.weight, layer.groups + (excess if layer.groups > 1 else 0)
    else:
        weight, groups = _blocks(layer)[:, :, None, None], 1
    width = layer.out_channels + excess
    wide = padded(weight, width)
    assert wide is not None
    return conv(wide, padded(layer.bias, width), groups)
