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

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention.canonical import NORM_FLOOR, generated_logits, tokens
from csa2glmha.attention.core import (
    Activation,
    Moments,
    Region,
    activated,
    applied,
    by_heads,
    everywhere,
    folded_heads,
    in_order,
)

#: Sides of the generators' depthwise kernels.
KERNEL_SIZES = (1, 3, 5, 7)
#: Fields that the first student files do not have.
_LATER_FIELDS = ("dilation", "query_channels", "activation")


@dataclass(frozen=True)
class GLMHAConfig:
    """Everything that fixes the shapes of one GLMHA layer.

    Attributes:
        channels: C, of the input.
        out_channels: queries of the output projection.
        heads: number of heads.
        head_channels: c of every head.
        rank_q, rank_k, rank_v: channels generated per head for queries, keys and values; c means full,
            and then the maps are used as they are, with no expansion. Queries and keys may both be 0.
        attention: "expanded" (softmax over c x c) or "compact" (softmax over rank_k = rank_v keys).
        kernel_size: of the depthwise part of the generators, 1 for none.
        dilation: likewise.
        query_channels: of an input that queries alone are made from; None: one input for all.
        activation: what makes the map of the logits; ReLU has no compact form.
        bias: the generators carry biases.
        output_bias: the output projection carries a bias.
        bias_rank: rank per head of the static logit bias; 0 leaves it out.
        guide_width: hidden units of the calibration network, and rank-one logit modes per head that it
            steers; 0 leaves it out.
        logits: what they are made from: "maps" (generated queries and keys), "gram" (the second moment of
            the input, with queries and keys full), "subspace" (the second moment of one projection of
            rank_q = rank_k channels per head, which expresses both) or "modes" (rank_q = rank_k = 0: static
            and guided modes are all there is).
        rank_pos: channels generated per head for the values that a positional embedding is made from;
            None makes them as they are.
    """

    channels: int
    out_channels: int
    heads: int
    head_channels: int
    rank_q: int
    rank_k: int
    rank_v: int
    attention: str = "expanded"
    kernel_size: int = 3
    bias: bool = False
    output_bias: bool = False
    bias_rank: int = 0
    guide_width: int = 0
    logits: str = "maps"
    rank_pos: int | None = None
    dilation: int = 1
    query_channels: int | None = None
    activation: Activation = "softmax"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; ``GLMHAConfig(**value)`` restores them.

        Fields that came later are left out where they say nothing: earlier versions can read such a file.
        """
        later = {field.name: field.default for field in fields(self) if field.name in _LATER_FIELDS}
        return {name: value for name, value in asdict(self).items() if later.get(name, ...) != value}

    @property
    def compact(self) -> bool:
        """The softmax runs over the generated keys."""
        return self.attention == "compact"

    @property
    def pooled_channels(self) -> int:
        """Channels of all inputs, which the guide sees."""
        return self.channels + (self.query_channels or 0)

    @property
    def padding(self) -> int:
        """Zeros on each side, with which the depthwise part keeps the size of maps."""
        return self.dilation * (self.kernel_size // 2)

    @property
    def key_gates(self) -> int:
        """Gates on keys; none where they would cancel in the normalisation of keys used as they are."""
        return self.heads * self.rank_k if self.compact or self.rank_k < self.head_channels else 0

    @property
    def full(self) -> bool:
        """Nothing is approximated: the layer computes what the CSA layer did."""
        ranks = (self.rank_q, self.rank_k, self.rank_v)
        return all(rank == self.head_channels for rank in ranks) and self.rank_pos is None

    @property
    def route(self) -> str:
        """How the layer computes, in words, for reports."""
        c = self.head_channels

        def size(rank: int) -> str:
            return "full" if rank == c else f"rank {rank}"

        routes = {
            "maps": f"logits from maps ({size(self.rank_q)} queries, {size(self.rank_k)} keys)",
            "gram": "logits from the input's Gram matrix (full)",
            "subspace": f"logits from a projection's Gram matrix ({size(self.rank_k)})",
            "modes": "static and guided logits",
        }
        branch = "" if self.rank_pos is None else f", branch values {size(self.rank_pos)}"
        second = "" if self.query_channels is None else ", queries from an input of their own"
        return f"{routes[self.logits]}, values {size(self.rank_v)}{branch}{second}"


class CalibrationNetwork(nn.Module):
    """The guide: pooled statistics of the input to per-image gates and logit-mode strengths.

    The hidden units serve twice. As they are, they are the strengths of the logit modes, fitted in
    closed form at initialisation; through a GELU and a second layer, which starts at zero, they correct
    gates and strengths. So the network starts as the closed form, with every gate at one.

    Args:
        channels: C of the input, or of all inputs together.
        width: hidden units, and logit modes.
        gates_k, gates_v: numbers of gates on keys and on values.
    """

    def __init__(self, channels: int, width: int, gates_k: int, gates_v: int) -> None:
        super().__init__()
        self.split = [width, gates_k, gates_v]
        self.hidden = nn.Linear(2 * channels, width)
        self.out = nn.Linear(width, sum(self.split))
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, C, H, W) to mode strengths (B, width) and gates (B, gates_k), (B, gates_v)."""
        return self.from_statistics(pooled_statistics(*inputs))

    def from_statistics(self, statistics: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward`, from :func:`pooled_statistics` (B, 2C)."""
        strengths = self.hidden(statistics)
        correction, gates_k, gates_v = self.out(F.gelu(strengths)).split(self.split, dim=1)
        return strengths + correction, 1 + gates_k, 1 + gates_v


def pooled_statistics(*inputs: Tensor) -> Tensor:
    """Mean and standard deviation of every channel: (B, C, H, W) to (B, 2C), C of all inputs together."""
    return statistics_of_moments(*pooled_moments(*inputs))


def pooled_moments(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square of every channel: (B, C, H, W) to (B, C) each, C of all inputs together."""
    mean = torch.cat([x.mean((2, 3)) for x in inputs], 1)
    return mean, torch.cat([x.square().mean((2, 3)) for x in inputs], 1)


def statistics_of_moments(mean: Tensor, square: Tensor) -> Tensor:
    """As :func:`pooled_statistics`, from :func:`pooled_moments`."""
    variance = square - mean.square()
    # The floor is for the root's gradient, which is infinite at zero.
    return torch.cat((mean, variance.clamp_min(NORM_FLOOR).sqrt()), 1)


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
                config.pooled_channels, config.guide_width, config.key_gates, heads * config.rank_v
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

    def fold(self, attention: Tensor, value_gates: Tensor | None = None) -> Tensor:
        """Output projection, attention and value expansion in one matrix: (B, out, heads * rank_v)."""
        heads = self.config.heads
        gate = None if value_gates is None else value_gates.view(-1, heads, 1, self.config.rank_v)
        return folded_heads(by_heads(self.output, heads), attention, self.expand_values, gate)

    def mix(self, folded: Tensor, values: Tensor) -> Tensor:
        """The layer's output from :meth:`fold` and (B, heads * rank_v, H, W): (B, out_channels, H, W)."""
        return applied(folded, values, self.output_bias)

    def pooled(self, *inputs: Tensor) -> Moments:
        """What the guide needs of inputs (B, C, H, W), as means over pixels; empty without one."""
        return () if self.guide is None else pooled_moments(*inputs)

    def guidance_of(self, pooled: Moments) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As :meth:`guidance`, from :meth:`pooled`."""
        if self.guide is None:
            return None, None, None
        strengths, key_gates, value_gates = self.guide.from_statistics(statistics_of_moments(*pooled))
        return strengths, key_gates, value_gates

    def matrix(self, moments: Moments) -> Tensor:
        """The map from the layer's moments, those of the logits before those of the guide; see core.py."""
        count = len(moments) - (0 if self.guide is None else 2)
        strengths, key_gates, value_gates = self.guidance_of(moments[count:])
        logits = self.logits_of(moments[:count], key_gates)
        return self.fold(self.attention(logits, strengths), value_gates)

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
        raise NotImplementedError

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


class Generator(NamedTuple):
    """Where queries, keys or values come from: channels of a convolution, and of a depthwise one after it."""

    pointwise: nn.Conv2d
    depthwise: nn.Conv2d | None
    channels: slice


def _depthwise(config: GLMHAConfig, width: int) -> nn.Conv2d | None:
    if config.kernel_size == 1:
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
        self.widths = [heads * config.rank_q, heads * config.rank_k, heads * config.rank_v]
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

    def apply_matrix(self, args: tuple[Any, ...], matrix: Tensor) -> Tensor:
        """The layer's output by that map."""
        return self.output_from(args, matrix, self.generate_values(self.inputs_of(args)[0]))

    def generate(self, x: Tensor, query_input: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The maps R_r, K_r and V_r: (B, heads * rank, H, W) each."""
        maps = self.pointwise(x)
        if self.depthwise is not None:
            maps = self.depthwise(maps)
        if self.query_pointwise is None:
            queries, keys, values = maps.split(self.widths, dim=1)
            return queries, keys, values
        keys, values = maps.split(self.widths[1:], dim=1)
        queries = self.query_pointwise(query_input)
        return queries if self.query_depthwise is None else self.query_depthwise(queries), keys, values

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
