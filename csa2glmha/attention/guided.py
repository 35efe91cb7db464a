"""What GLMHA layers have in common: corrected logits, and the matrix that all is folded into."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.core import (
    Moments,
    Region,
    activated,
    applied,
    by_heads,
    everywhere,
    folded_heads,
    in_order,
)
from csa2glmha.attention.guide import CalibrationNetwork, pooled_moments, statistics_of_moments


class GuidedAttention(nn.Module):
    """What layers have in common, wherever their logits and values come from.

    A layer that is called otherwise than with maps says so in :meth:`bind`, :meth:`inputs_of` and
    :meth:`module_output`; :meth:`value_factors` and :meth:`value_branch` are what lies beside the attention.

    Common is the correction of the logits (temperature, static and guided modes, gates) and the matrix into
    which output projection, attention and value expansion are folded.
    """

    def __init__(self, config: GLMHAConfig) -> None:
        super().__init__()
        self.config = config
        heads, c = config.heads, config.head_channels
        # Low-rank keys have norms of their own; a temperature per key makes up for the ratio.
        keys = config.rank_k if config.compact else c
        self.temperature = (
            nn.Parameter(torch.ones(heads, 1, 1 if config.rank_k == c else keys)) if config.rank_k else None
        )
        self.query_scale = nn.Parameter(torch.ones(heads, c, 1)) if 0 < config.rank_q < c else None
        self.output = nn.Parameter(torch.zeros(config.out_channels, heads * c))
        self.output_bias = nn.Parameter(torch.zeros(config.out_channels)) if config.output_bias else None
        full_values = config.compact or config.rank_v == c
        self.expand_values = None if full_values else nn.Parameter(torch.zeros(heads, c, config.rank_v))
        # The logits' correction is left * diag(strengths) * right^T per head: first the static modes,
        # of strength one, then the guided ones.
        modes = config.bias_rank + config.guide_width
        self.mode_left = nn.Parameter(torch.zeros(heads, c, modes)) if modes else None
        self.mode_right = nn.Parameter(torch.zeros(heads, keys, modes)) if modes else None
        self.guide = (
            CalibrationNetwork(
                config.pooled_channels, config.guide_width, config.key_gates, config.value_width
            )
            if config.guide_width
            else None
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The arguments of a call, those given by keyword in their places."""
        return in_order(partial(type(self).forward, self), args, kwargs)

    def inputs_of(self, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
        """What the attention is made from, (B, C, H, W), and a second input for queries, from a call's."""
        return args[:1] if self.config.query_channels is None else args[:2]

    def input_logits(self, *inputs: Tensor) -> Tensor:
        """S for inputs (B, C, H, W), before modes and gates: (B, heads, c, keys)."""
        raise NotImplementedError

    def no_logits(self, x: Tensor) -> Tensor:
        """What modes are added to where there is nothing else: zeros (B, heads, c, c)."""
        c = self.config.head_channels
        return x.new_zeros(x.shape[0], self.config.heads, c, c)

    def scale(self) -> Tensor:
        """What normalised products of queries and keys are multiplied by: (heads, c or 1, keys or 1)."""
        assert self.temperature is not None
        return self.temperature if self.query_scale is None else self.temperature * self.query_scale

    def guidance(self, *inputs: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Mode strengths (B, guide_width) and gates (B, heads * rank) on keys and values; None: no guide."""
        return (None, None, None) if self.guide is None else self.guide(*inputs)

    def key_gate(self, key_gates: Tensor | None) -> Tensor | None:
        """The gates on keys as (B, heads, 1, rank_k), None where there are none to apply."""
        if key_gates is None or not self.config.key_gates:
            return None
        return key_gates.view(-1, self.config.heads, 1, self.config.rank_k)

    def correct(self, logits: Tensor, strengths: Tensor | None) -> Tensor:
        """Add static and guided modes to logits."""
        correction = self.correction(strengths)
        return logits if correction is None else logits + correction

    def correction(self, strengths: Tensor | None = None) -> Tensor | None:
        """What is added to the logits, (1 or B, heads, c, keys), given the guide's strengths."""
        if self.mode_left is None or self.mode_right is None:
            return None
        left = self.mode_left.unsqueeze(0)
        if strengths is not None:
            static = strengths.new_ones(strengths.shape[0], self.config.bias_rank)
            left = left * torch.cat((static, strengths), 1)[:, None, None, :]
        return left @ self.mode_right.transpose(-2, -1)

    def fold(
        self, attention: Tensor, value_gates: Tensor | None = None, output: Tensor | None = None
    ) -> Tensor:
        """Output projection, attention and value expansion in one matrix: (B, out, heads * rank_v).

        ``output`` takes the place of the layer's own projection.
        """
        heads = self.config.heads
        gate = None if value_gates is None else value_gates.view(-1, heads, 1, self.config.rank_v)
        projection = self.output if output is None else output
        return folded_heads(by_heads(projection, heads), attention, self.expand_values, gate)

    def mix(self, folded: Tensor, values: Tensor) -> Tensor:
        """The layer's output from :meth:`fold` and V as :meth:`values_of`: (B, out_channels, H, W)."""
        return applied(folded, self.reduced(values), self.output_bias)

    def reduced(self, values: Tensor) -> Tensor:
        """What the map is applied to, (B, heads * rank_v, H, W), from V as :meth:`values_of` gives it."""
        return values

    def values_of(self, args: tuple[Any, ...]) -> Tensor:
        """V, (B, heads * rank_v, H, W), or in full where something else is made of it."""
        raise NotImplementedError

    def pooled(self, *inputs: Tensor) -> Moments:
        """What the guide needs of inputs (B, C, H, W), as means over pixels; empty without one."""
        return () if self.guide is None else pooled_moments(*inputs)

    def guidance_of(self, pooled: Moments) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As :meth:`guidance`, from :meth:`pooled`."""
        if self.guide is None:
            return None, None, None
        strengths, key_gates, value_gates = self.guide.from_statistics(statistics_of_moments(*pooled))
        return strengths, key_gates, value_gates

    def matrix(self, moments: Moments, output: Tensor | None = None) -> Tensor:
        """The map from the layer's moments, those of the logits before those of the guide; see core.py.

        ``output`` takes the place of the layer's own projection.
        """
        count = len(moments) - (0 if self.guide is None else 2)
        strengths, key_gates, value_gates = self.guidance_of(moments[count:])
        logits = self.logits_of(moments[:count], key_gates)
        return self.fold(self.attention(logits, strengths), value_gates, output)

    def attention(self, logits: Tensor, strengths: Tensor | None = None) -> Tensor:
        """The map that logits make, with modes added: (B, heads, c, keys)."""
        return activated(self.correct(logits, strengths), self.config.activation)

    def logits_of(self, moments: Moments, key_gates: Tensor | None) -> Tensor:
        """S before modes are added, from the moments that it is made of: (B, heads, c, keys)."""
        raise NotImplementedError

    def moments_of(self, args: tuple[Any, ...], region: Region = everywhere) -> Moments:
        """What the map needs of the pixels in the region; ``args`` are those of the layer's call."""
        raise NotImplementedError

    def apply_matrix(self, args: tuple[Any, ...], matrix: Tensor) -> Tensor:
        """The layer's output by that map."""
        return self.output_from(args, matrix, self.values_of(args))

    def attended(self, args: tuple[Any, ...]) -> Tensor:
        """What the output projection is applied to, (B, heads * c, H, W)."""
        every = torch.eye(self.output.shape[1], device=self.output.device, dtype=self.output.dtype)
        values, factors = self.values_of(args), self.value_factors(args)
        matrix = self.matrix(self.moments_of(args), every)
        return applied(matrix, self.reduced(values if factors is None else values * factors), None)

    def attend(self, args: tuple[Any, ...]) -> Tensor:
        """The layer's output, with the map that its own input makes."""
        raise NotImplementedError

    def value_factors(self, args: tuple[Any, ...]) -> Tensor | None:
        """What V is multiplied by before the attention, from the arguments of a call; None: nothing.

        A layer that says something here, or in :meth:`value_branch`, makes V in full.
        """
        return None

    def value_branch(self, values: Tensor) -> Tensor | None:
        """What is made of V (B, heads * c, H, W) and added to the output; None: nothing."""
        return None

    def output_from(self, args: tuple[Any, ...], matrix: Tensor, values: Tensor) -> Tensor:
        """The layer's output from the map and V (B, heads * rank_v, H, W), with what lies beside it."""
        factors = self.value_factors(args)
        y = self.mix(matrix, values if factors is None else values * factors)
        branch = self.value_branch(values)
        return self.module_output(args, y if branch is None else y + branch)

    def module_output(self, args: tuple[Any, ...], maps: Tensor) -> Tensor:
        """What the module that it replaces returned, from the output (B, out_channels, H, W)."""
        return maps
