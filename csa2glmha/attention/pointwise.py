"""GLMHA where queries, keys and values are pointwise projections and all of V is needed anyway.

Without a depthwise part the logits depend on the input through second moments alone,

    Q K^T = W_Q (X X^T) W_K^T    |q_i|^2 = (W_Q (X X^T) W_Q^T)_ii    |k_j|^2 likewise

so no map of queries or keys is made: at full rank one C x C Gram matrix replaces both projections and
their product (C^2 in place of 2 C^2 + c C multiply-accumulates a pixel: there is no size of C, or of an
image that is worth compressing, at which making the maps would be cheaper). In low rank the same
formulas run on the Gram matrix of a projection Z of r channels per head, W_Q X ~ G_q Z, W_K X ~ G_k Z.

V, in full because a branch beside the attention takes it, may be multiplied by something before the
attention sees it; its low-rank form V_r = U^T V is taken behind that.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.attention.canonical import gram_logits, tokens
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.core import Moments, Region, everywhere
from csa2glmha.attention.guided import GuidedAttention


class PointwiseGLMHA(GuidedAttention):
    """The layer, (B, C, H, W) to (B, out_channels, H, W), by any ``config.logits`` but "maps"."""

    def __init__(self, config: GLMHAConfig) -> None:
        super().__init__(config)
        channels, heads, c, r = config.channels, config.heads, config.head_channels, config.rank_k
        subspace = config.logits == "subspace"
        self.projection = nn.Conv2d(channels, heads * r, 1, bias=False) if subspace else None
        # In the Gram route "Z" is the input itself, of all heads, and these are W_Q and W_K.
        moments = r if subspace else channels
        modes = config.logits == "modes"
        self.expand_queries = None if modes else nn.Parameter(torch.zeros(heads, c, moments))
        self.expand_keys = None if modes else nn.Parameter(torch.zeros(heads, c, moments))
        self.values = _values(config)
        self.reduce_values = (
            nn.Conv2d(heads * c, heads * config.rank_v, 1, groups=heads, bias=False)
            if config.rank_v < c
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.attend((x,))

    def attend(self, args: tuple[Any, ...]) -> Tensor:
        """The layer's output, with the map that its own input makes."""
        return self.apply_matrix(args, self.matrix(self.moments_of(args)))

    def moments_of(self, args: tuple[Any, ...], region: Region = everywhere) -> Moments:
        """What the map needs of the pixels in the region; ``args`` are those of the layer's call."""
        x = region(self.inputs_of(args)[0])
        return self.no_logits(x) if self.expand_queries is None else self.gram(x), *self.pooled(x)

    def logits_of(self, moments: Moments, key_gates: Tensor | None) -> Tensor:
        """As :meth:`gram_logits`."""
        (gram,) = moments
        return self.gram_logits(gram, key_gates)

    def values_of(self, args: tuple[Any, ...]) -> Tensor:
        """V in full, (B, heads * c, H, W)."""
        values: Tensor = self.values(self.inputs_of(args)[0])
        return values

    def reduced(self, values: Tensor) -> Tensor:
        """What the map is applied to, (B, heads * rank_v, H, W), from V in full."""
        return values if self.reduce_values is None else self.reduce_values(values)

    def input_logits(self, *inputs: Tensor) -> Tensor:
        """S for an input (B, C, H, W), before modes and gates: (B, heads, c, c)."""
        (x,) = inputs
        return self.no_logits(x) if self.expand_queries is None else self.gram_logits(self.gram(x))

    def gram(self, x: Tensor) -> Tensor:
        """Z's mean products, which :meth:`gram_logits` takes, for an input (B, C, H, W)."""
        z = x.flatten(2).unsqueeze(1) if self.projection is None else self._subspace(x)
        return z @ z.transpose(-2, -1) / z.shape[-1]

    def gram_logits(self, gram: Tensor, key_gates: Tensor | None = None) -> Tensor:
        """As :meth:`input_logits`, from Z's mean products (B, heads, r, r); full rank: (B, 1, C, C)."""
        if self.expand_queries is None or self.expand_keys is None:
            return self.no_logits(gram)
        gate = self.key_gate(key_gates)
        keys = self.expand_keys if gate is None else self.expand_keys * gate
        return gram_logits(gram, self.expand_queries, keys, self.scale())

    def subspace_gram(self, gram: Tensor) -> Tensor:
        """What :meth:`gram_logits` takes, from the input's mean products (B, C, C)."""
        gram = gram.unsqueeze(1)
        if self.projection is None:
            return gram
        weight = self.projection.weight.view(self.config.heads, -1, gram.shape[-1])
        return weight @ gram @ weight.transpose(-2, -1)

    def _subspace(self, x: Tensor) -> Tensor:
        assert self.projection is not None
        return tokens(self.projection(x), self.config.heads)


def gram_is_cheaper(channels: int, heads: int, rank: int) -> bool:
    """Whether the input's Gram matrix costs no more a pixel than a projection of that rank, and its own."""
    return channels**2 <= channels * heads * rank + heads * rank**2


def full_values_are_cheaper(channels: int, heads: int, rank: int) -> bool:
    """Whether V itself costs no more a pixel than making V_r from it, head by head, and expanding that.

    The low-rank V of the branch beside the attention has the same price: all heads'
    generators, then head by head.
    """
    return channels**2 <= channels * rank * (1 + heads)


def _values(config: GLMHAConfig) -> nn.Module:
    """W_V, or its two factors: all heads' generators, and their expansion head by head."""
    heads, width = config.heads, config.heads * config.head_channels
    if config.rank_pos is None:
        return nn.Conv2d(config.channels, width, 1, bias=False)
    generated = heads * config.rank_pos
    return nn.Sequential(
        nn.Conv2d(config.channels, generated, 1, bias=False),
        nn.Conv2d(generated, width, 1, groups=heads, bias=False),
    )
