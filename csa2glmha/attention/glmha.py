"""Guided low-rank multi-head self-attention (GLMHA), the replacement of a CSA layer.

After Ilyas et al., "GLMHA: A Guided Low-rank Multi-Head Self-Attention for Efficient Image
Restoration and Spectral Reconstruction" (arXiv 2410.00380), in a form that a trained CSA layer can
be converted to: keys and values are generated in low rank straight from the input, the softmax runs
over the *expanded* c x c logits, so that full rank is CSA exactly,

    K ~ G_k K_r    V ~ H V_r    (optionally R ~ G_r R_r)
    S = temperature * normalised(R K^T) + B
    Y = (output * softmax(S) * H) V_r        G, H, B: small, they touch no map.

The ``compact`` form is the paper's: the softmax runs over the r generated keys themselves.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention.canonical import generated_logits, tokens
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.core import Moments, Region, everywhere
from csa2glmha.attention.guided import GuidedAttention


class Generator(NamedTuple):
    """Where queries, keys or values come from: channels of a convolution, and of a depthwise one after it."""

    pointwise: nn.Conv2d
    depthwise: nn.Conv2d | None
    channels: slice


def _depthwise(config: GLMHAConfig, width: int) -> nn.Conv2d | None:
    if config.kernel_size == 1 or width == 0:
        return None
    return nn.Conv2d(
        width,
        width,
        config.kernel_size,
        padding=config.padding,
        dilation=config.dilation,
        groups=width,
        bias=config.bias,
    )


class GLMHA(GuidedAttention):
    """The layer, (B, C, H, W) to (B, out_channels, H, W), with generated queries, keys and values.

    Where ``config.query_channels`` is set, queries are made from a second input (B, query_channels, H, W).
    """

    def __init__(self, config: GLMHAConfig) -> None:
        super().__init__(config)
        heads, c = config.heads, config.head_channels
        self.widths = [heads * config.rank_q, heads * config.rank_k, config.value_width]
        own = config.query_channels is not None and config.rank_q > 0
        generated = sum(self.widths[1:]) if own else sum(self.widths)
        self.pointwise = nn.Conv2d(config.channels, generated, 1, bias=config.bias)
        self.depthwise = _depthwise(config, generated)
        self.query_pointwise = self.query_depthwise = None
        if own and config.query_channels is not None:
            self.query_pointwise = nn.Conv2d(config.query_channels, self.widths[0], 1, bias=config.bias)
            self.query_depthwise = _depthwise(config, self.widths[0])

        def expansion(rank: int) -> nn.Parameter | None:
            return None if rank in (0, c) else nn.Parameter(torch.zeros(heads, c, rank))

        self.expand_queries = expansion(config.rank_q)
        self.expand_keys = None if config.compact else expansion(config.rank_k)

    def forward(self, x: Tensor, query_input: Tensor | None = None) -> Tensor:
        return self.attend((x, query_input))

    def attend(self, args: tuple[Any, ...]) -> Tensor:
        """The layer's output, with the map that its own input makes."""
        inputs = self.inputs_of(args)
        queries, keys, values = self.generate(*inputs)
        matrix = self.matrix((*self.moments(queries, keys), *self.pooled(*inputs)))
        return self.output_from(args, matrix, values)

    def moments_of(self, args: tuple[Any, ...], region: Region = everywhere) -> Moments:
        """What the map needs of the pixels in the region; ``args`` are those of the layer's call."""
        inputs = self.inputs_of(args)
        queries, keys, _ = (region(maps) for maps in self.generate(*inputs))
        return (*self.moments(queries, keys), *self.pooled(*(region(x) for x in inputs)))

    def logits_of(self, moments: Moments, key_gates: Tensor | None) -> Tensor:
        """As :meth:`uncorrected_logits`, from :meth:`moments`."""
        cross, queries, keys = moments
        return self.logits_of_moments(cross, queries, keys, key_gates)

    def values_of(self, args: tuple[Any, ...]) -> Tensor:
        """V, (B, heads * rank_v, H, W)."""
        return self.generate_values(self.inputs_of(args)[0])

    def generate(self, x: Tensor, query_input: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The maps R_r, K_r and V_r: (B, heads * rank, H, W) each."""
        if not self.pointwise.out_channels:  # modes alone, of a layer that makes no values
            return self._nothing(x), self._nothing(x), self._nothing(x)
        maps = self.pointwise(x)
        if self.depthwise is not None:
            maps = self.depthwise(maps)
        if self.query_pointwise is None:
            queries, keys, values = maps.split(self.widths, dim=1)
            return queries, keys, values
        keys, values = maps.split(self.widths[1:], dim=1)
        queries = self.query_pointwise(query_input)
        return queries if self.query_depthwise is None else self.query_depthwise(queries), keys, values

    @staticmethod
    def _nothing(x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], 0, *x.shape[2:])

    def generators(self) -> list[Generator]:
        """What makes queries, keys and values; without any channels those that are left out."""
        made, start = [], 0
        for index, width in enumerate(self.widths):
            if index == 0 and self.query_pointwise is not None:
                made.append(Generator(self.query_pointwise, self.query_depthwise, slice(0, width)))
                continue
            made.append(Generator(self.pointwise, self.depthwise, slice(start, start + width)))
            start += width
        return made

    def generate_values(self, x: Tensor) -> Tensor:
        """The maps V_r (B, heads * rank_v, H, W) alone, which is cheaper than :meth:`generate`."""

        def last(convolution: nn.Conv2d) -> tuple[Tensor, Tensor | None]:
            bias = convolution.bias
            count = self.widths[-1]
            return convolution.weight[-count:], None if bias is None else bias[-count:]

        maps = F.conv2d(x, *last(self.pointwise))
        if self.depthwise is None:
            return maps
        return F.conv2d(
            maps,
            *last(self.depthwise),
            padding=self.config.padding,
            dilation=self.config.dilation,
            groups=maps.shape[1],
        )

    def input_logits(self, *inputs: Tensor) -> Tensor:
        """S for inputs (B, C, H, W), before modes and gates: (B, heads, c, keys)."""
        queries, keys, _ = self.generate(*inputs)
        return self.uncorrected_logits(queries, keys)

    def logits(
        self,
        queries: Tensor,
        keys: Tensor,
        strengths: Tensor | None = None,
        key_gates: Tensor | None = None,
    ) -> Tensor:
        """S for generated maps: (B, heads, c, c), or (B, heads, c, rank_k) in the compact form."""
        return self.correct(self.uncorrected_logits(queries, keys, key_gates), strengths)

    def uncorrected_logits(self, queries: Tensor, keys: Tensor, key_gates: Tensor | None = None) -> Tensor:
        """As :meth:`logits`, before static and guided modes are added."""
        if not self.config.rank_k:
            return self.no_logits(queries)  # no moments of maps without channels
        return self.logits_of_moments(*self.moments(queries, keys), key_gates)

    def moments(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """All that the logits need of generated maps, as means over pixels.

        Returns:
            Products of queries and keys (B, heads, rank_q, rank_k); of queries and of keys the squares
            (B, heads, c) if they are used as they are, otherwise the products (B, heads, rank, rank).
        """
        heads = self.config.heads
        if not self.config.rank_k:  # there are no moments of maps without channels
            none = queries.new_zeros(queries.shape[0], heads, 0, 0)
            return none, none, none
        queries, keys = tokens(queries, heads), tokens(keys, heads)
        pixels = queries.shape[-1]

        def own(maps: Tensor, expand: Tensor | None) -> Tensor:
            return maps.square().mean(-1) if expand is None else maps @ maps.transpose(-2, -1) / pixels

        cross = queries @ keys.transpose(-2, -1) / pixels
        return cross, own(queries, self.expand_queries), own(keys, self.expand_keys)

    def logits_of_moments(
        self, cross: Tensor, query_moments: Tensor, key_moments: Tensor, key_gates: Tensor | None = None
    ) -> Tensor:
        """As :meth:`uncorrected_logits`, from :meth:`moments`."""
        if not self.config.rank_k:
            return self.no_logits(cross)
        queries = query_moments if self.expand_queries is not None else query_moments.unsqueeze(-1)
        keys = key_moments if self.expand_keys is not None else key_moments.unsqueeze(-2)
        gate = self.key_gate(key_gates)
        return generated_logits(
            (cross, queries, keys), self.expand_queries, self.expand_keys, self.scale(), gate
        )
