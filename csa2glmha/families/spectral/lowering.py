"""How what MST, MST++ and Retinexformer share is deployed."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from csa2glmha.attention.canonical import gram_logits
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
from csa2glmha.export.lowering.primitives import cast_like, pixel_share, rows_last
from csa2glmha.families.spectral.blocks import NormedFeedForward
from csa2glmha.families.spectral.readers import FactoredSpectralGLMHA, SpectralGLMHA
from csa2glmha.networks.skipped import Skipped


class DeployedFeedForward(nn.Module):
    """The feed-forward network with the layer norm's affine part in its first convolution."""

    def __init__(self, layer: NormedFeedForward) -> None:
        super().__init__()
        first, *rest = layer.fn.net
        assert isinstance(first, nn.Conv2d)
        affine = Affine(layer.norm.weight, layer.norm.bias, subtract_mean=True)
        self.norm = UnitNorm(first.in_channels, layer.norm.eps)
        # Named as in the network, so that a profile tells whose time it is.
        self.fn = nn.Sequential(pointwise(*fold_affine(first.weight[:, :, 0, 0], first.bias, affine)), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x))


def deployed_feed_forward(layer: NormedFeedForward) -> nn.Module:
    """The same in fewer operators; where the network goes without, its norm is left out, too."""
    return Skipped() if isinstance(layer.fn, Skipped) else DeployedFeedForward(layer)


class DeployedSpectral(DeployedCore):
    """The logits, from second moments, and the positional embedding, padded where that is faster."""

    def __init__(self, layer: SpectralGLMHA) -> None:
        super().__init__(layer)
        self.subspace = None
        if layer.projection is not None:
            self.subspace = nn.Parameter(
                layer.projection.weight.detach().view(self.config.heads, -1, self.config.channels).clone()
            )
        self.expand_queries = None if layer.expand_queries is None else copied(layer.expand_queries)
        self.expand_keys = None if layer.expand_keys is None else copied(layer.expand_keys)
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
        if self.guide is not None or self.expand_queries is not None:
            rows = rows_last(x, self.config.channels) if self.channels_last else x.flatten(2)
            rows, pixels = rows.float(), 1 if self.channels_last else 2
            turned = rows.transpose(1, 2)
            gram = (turned @ rows if self.channels_last else rows @ turned) * share
            if self.guide is not None:
                pooled = rows.sum(pixels) * share, (gram * self.identity).sum(2)
        strengths, key_gates, value_gates = self.guidance(pooled)
        logits = None
        if gram is not None and self.expand_queries is not None:
            logits = self.logits(gram.unsqueeze(1), self.key_gate(key_gates))
        return self.folded(self.attention(logits, strengths), value_gates)

    def logits(self, gram: Tensor, gate: Tensor | None) -> Tensor:
        """From second moments of the input: (B, 1, C, C)."""
        assert self.expand_queries is not None and self.expand_keys is not None and self.scale is not None
        if self.subspace is not None:
            gram = self.subspace @ gram @ self.subspace.transpose(1, 2)
        keys = self.expand_keys if gate is None else self.expand_keys * gate
        return gram_logits(gram, self.expand_queries, keys, self.scale)

    def narrowed(self, maps: Tensor) -> Tensor:
        """Without the channels that were added."""
        return maps.split([self.width, self.excess], dim=1)[0] if self.excess else maps


class DeployedFactored(DeployedSpectral):
    """A layer whose attention sees the values times factors."""

    def __init__(self, layer: FactoredSpectralGLMHA) -> None:
        super().__init__(layer)
        reduce = layer.reduce_values
        self.reduce = None if reduce is None else pointwise(blocks_matrix(reduce))

    def factored(self, x: Tensor, factors: Tensor) -> Tensor:
        """The layer's output for factors (1 or B, heads * c, H, W)."""
        values = self.values(x)
        seen = self.narrowed(values)
        seen, width = seen * cast_like(factors, seen), self.width
        if self.reduce is not None:
            width = self.reduce.out_channels
            seen = self.reduce(seen)
        return self.mixed(self.weights(x), seen, width, x) + self.narrowed(self.pos_emb(values))


def _add_bias(layers: nn.Module, bias: Tensor) -> None:
    """Add a bias (C,) to the results of convolutions whose last has at least C channels."""
    *_, last = (module for module in layers.modules() if isinstance(module, nn.Conv2d))
    wide = padded(bias, last.out_channels)
    assert wide is not None
    last.bias = nn.Parameter((wide if last.bias is None else wide + last.bias).detach())


def values_matrix(values: nn.Module) -> Tensor:
    """All of the values' projection: (heads * c, C)."""
    if isinstance(values, nn.Conv2d):
        return values.weight[:, :, 0, 0]
    generate, expand = values.children()
    assert isinstance(generate, nn.Conv2d) and isinstance(expand, nn.Conv2d)
    return blocks_matrix(expand) @ generate.weight[:, :, 0, 0]


def blocks_matrix(grouped: nn.Conv2d) -> Tensor:
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
        weight, groups = blocks_matrix(layer)[:, :, None, None], 1
    width = layer.out_channels + excess
    wide = padded(weight, width)
    assert wide is not None
    return conv(wide, padded(layer.bias, width), groups)
