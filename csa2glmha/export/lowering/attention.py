"""GLMHA layers as they are deployed: the same mathematics in fewer passes over the maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention.canonical import NORM_FLOOR, expanded_power
from csa2glmha.attention.glmha import GLMHA, CalibrationNetwork, GuidedAttention
from csa2glmha.export.lowering.folding import (
    CHANNEL_BLOCK,
    Affine,
    conv_pair,
    depthwise_width,
    fold_affine,
)
from csa2glmha.export.lowering.primitives import cast_like, maps_like, pixel_share, square_sum, tokens


class DeployedGuide(nn.Module):
    """A calibration network that reads what a layer norm's affine part was folded out of.

    Args:
        guide: the network.
        affine: what the pooled maps lack of a layer norm; None: nothing.
    """

    def __init__(self, guide: CalibrationNetwork, affine: Affine | None) -> None:
        super().__init__()
        self.split = guide.split
        of_mean, of_deviation = guide.hidden.weight.detach().chunk(2, dim=1)
        bias = guide.hidden.bias.detach()
        if affine is not None:
            if affine.bias is not None:
                bias = bias + of_mean @ affine.bias
            of_mean, of_deviation = of_mean * affine.weight, of_deviation * affine.weight.abs()
        self.of_mean, self.of_deviation = _linear(of_mean, bias), _linear(of_deviation)
        self.out = guide.out

    def forward(self, mean: Tensor, mean_square: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled maps (B, C) to mode strengths (B, width), gates (B, gates_k) and gates (B, gates_v)."""
        deviation = (mean_square - mean.square()).clamp_min(NORM_FLOOR).sqrt()
        strengths = self.of_mean(mean) + self.of_deviation(deviation)
        correction, gates_k, gates_v = self.out(F.gelu(strengths)).split(self.split, dim=1)
        return strengths + correction, gates_k + 1.0, gates_v + 1.0


def pooled_squares(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square over the pixels of (B, C, H, W): (B, C) each."""
    rows, share = x.flatten(2).float(), pixel_share(x)
    return rows.sum(2) * share, square_sum(rows, 2).squeeze(2) * share


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


class DeployedCore(nn.Module):
    """What deployed layers have in common: from small matrices to small matrices, all in float32."""

    def __init__(self, layer: GuidedAttention, affine: Affine | None = None) -> None:
        super().__init__()
        self.config = layer.config
        self.scale = None
        if layer.temperature is not None:
            scale = layer.temperature.detach()
            if layer.query_scale is not None:
                scale = scale * layer.query_scale.detach()
            self.scale = nn.Parameter(scale.clone())
        modes = layer.config.bias_rank
        left, right = layer.mode_left, layer.mode_right
        self.static = self.left = self.right = None
        if left is not None and right is not None:
            static, right_t = (
                left[..., :modes] @ right[..., :modes].transpose(1, 2),
                right[..., modes:].transpose(1, 2),
            )
            self.static = nn.Parameter(static.detach().unsqueeze(0).clone()) if modes else None
            if layer.guide is not None:
                self.left = nn.Parameter(left[..., modes:].detach().unsqueeze(0).clone())
                self.right = nn.Parameter(right_t.detach().unsqueeze(0).clone())
        self.guide = None if layer.guide is None else DeployedGuide(layer.guide, affine)
        expand = layer.expand_values
        self.expand_values = None if expand is None else nn.Parameter(expand.detach().clone())
        heads, c = self.config.heads, self.config.head_channels
        output = layer.output.detach().view(-1, heads, c).transpose(0, 1)
        self.output = nn.Parameter(output.contiguous().clone())
        bias = layer.output_bias
        self.output_bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def guidance(
        self, x: Tensor, pooled: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Mode strengths and gates, from pooled maps if they are not those of x itself."""
        if self.guide is None:
            return None, None, None
        mean, mean_square = pooled_squares(x) if pooled is None else pooled
        strengths, key_gates, value_gates = self.guide(mean, mean_square)
        return strengths, key_gates, value_gates

    def key_gate(self, gates: Tensor | None) -> Tensor | None:
        if gates is None or not self.config.key_gates:
            return None
        return gates.view(-1, self.config.heads, 1, self.config.rank_k)

    def normalised(self, cross: Tensor, query_power: Tensor, key_power: Tensor) -> Tensor:
        """Logits (B, heads, c, keys) from means over pixels.

        The powers are those of queries (B, heads, c, 1) and keys (B, heads, keys, 1).
        """
        assert self.scale is not None
        queries = query_power.clamp_min(NORM_FLOOR).rsqrt()
        keys = key_power.clamp_min(NORM_FLOOR).rsqrt().transpose(2, 3)
        return cross * queries * (keys * self.scale)

    def attention(self, logits: Tensor | None, strengths: Tensor | None) -> Tensor:
        """Softmax of corrected logits; without logits there are the corrections alone."""
        terms: list[Tensor] = []
        if self.static is not None:
            terms.append(self.static)
        if strengths is not None and self.left is not None and self.right is not None:
            strength = strengths.view(-1, 1, 1, self.config.guide_width)
            terms.append((self.left * strength) @ self.right)
        # Last: with two sums behind the logits OpenVINO 2026.4 runs out of registers and compiles nothing.
        if logits is not None:
            terms.append(logits)
        total = terms[0]
        for term in terms[1:]:
            total = total + term
        return total.softmax(-1)

    def folded(self, attention: Tensor, gates: Tensor | None) -> Tensor:
        """Output projection, attention and value expansion in one: (B, out_channels, heads * rank_v)."""
        if self.expand_values is not None:
            attention = attention @ self.expand_values
        if gates is not None:
            attention = attention * gates.view(-1, self.config.heads, 1, self.config.rank_v)
        return (self.output @ attention).transpose(1, 2).flatten(2)

    def mixed(self, folded: Tensor, values: Tensor, like: Tensor) -> Tensor:
        """The output (B, out_channels, H, W) from :meth:`folded` and values (B, heads * rank_v, H * W)."""
        y = maps_like(cast_like(folded, values) @ values, like)
        return y if self.output_bias is None else y + cast_like(self.output_bias.view(1, -1, 1, 1), y)


class DeployedGLMHA(DeployedCore):
    """In the place of :class:`~csa2glmha.attention.glmha.GLMHA` and the layer norm before it.

    Args:
        layer: the layer; it is not changed.
        affine: of the layer norm; None: there is none.
    """

    def __init__(self, layer: GLMHA, affine: Affine | None = None) -> None:
        super().__init__(layer, affine)
        weight, bias = layer.pointwise.weight[:, :, 0, 0], layer.pointwise.bias
        if affine is not None:
            weight, bias = fold_affine(weight, bias, affine)
        spread = None if layer.depthwise is None else layer.depthwise.weight
        spread_bias = None if layer.depthwise is None else layer.depthwise.bias
        queries, keys, values = layer.widths
        # Narrow keys and values share a block of channels; splitting wide maps would be a copy of them.
        narrow = keys % CHANNEL_BLOCK != 0 or values % CHANNEL_BLOCK != 0
        shares = [[queries], [keys, values]] if narrow else [[queries], [keys], [values]]
        if not keys:
            shares = [[values]]
        self.parts, self.shares = nn.ModuleList(), [len(counts) for counts in shares]
        self.splits: list[list[int]] = []
        first = 0  # without keys there are no queries
        for counts in shares:
            count = sum(counts)
            cut, width = slice(first, first + count), depthwise_width(count)
            shift, kernels, offset = (_cut(each, cut) for each in (bias, spread, spread_bias))
            self.parts.append(conv_pair(weight[cut], shift, kernels, offset, width, self.config.dilation))
            self.splits.append(counts if width == count else [*counts, width - count])
            first += count
        self.expand_queries = None if layer.expand_queries is None else copied(layer.expand_queries)
        self.expand_keys = None if layer.expand_keys is None else copied(layer.expand_keys)

    def generate(self, x: Tensor) -> list[Tensor]:
        """The maps of queries and keys, where there are any, and values, (B, heads * rank, H, W) each."""
        maps: list[Tensor] = []
        for part, sizes, count in zip(self.parts, self.splits, self.shares, strict=True):
            made = part(x)
            pieces = [made] if len(sizes) == 1 else made.split(sizes, dim=1)
            maps.extend(pieces[index] for index in range(count))  # a trace cannot iterate over them
        return maps

    def forward(self, x: Tensor, pooled: tuple[Tensor, Tensor] | None = None) -> Tensor:
        *logit_maps, value_maps = self.generate(x)
        strengths, key_gates, value_gates = self.guidance(x, pooled)
        logits = None
        if logit_maps:
            heads = self.config.heads
            queries = tokens(logit_maps[0], heads, self.config.rank_q).float()
            keys = tokens(logit_maps[1], heads, self.config.rank_k).float()
            logits = self.logits(queries, keys, pixel_share(x), self.key_gate(key_gates))
        attention = self.attention(logits, strengths)
        return self.mixed(self.folded(attention, value_gates), value_maps.flatten(2), x)

    def logits(self, queries: Tensor, keys: Tensor, share: Tensor, gate: Tensor | None) -> Tensor:
        """S for queries and keys (B, heads, rank, L), before static and guided modes are added."""
        cross = queries @ keys.transpose(2, 3) * share
        if self.expand_keys is None:
            key_power = square_sum(keys, 3) * share
        else:
            expand = self.expand_keys if gate is None else self.expand_keys * gate
            key_power = expanded_power(expand, keys @ keys.transpose(2, 3) * share).unsqueeze(-1)
            cross = cross @ expand.transpose(2, 3)
        if self.expand_queries is None:
            query_power = square_sum(queries, 3) * share
        else:
            gram = queries @ queries.transpose(2, 3) * share
            query_power = expanded_power(self.expand_queries, gram).unsqueeze(-1)
            cross = self.expand_queries @ cross
        logits = self.normalised(cross, query_power, key_power)
        return logits * gate if self.config.compact and gate is not None else logits


def copied(parameter: Tensor) -> nn.Parameter:
    """The parameter with an axis for the batch."""
    return nn.Parameter(parameter.detach().unsqueeze(0).clone())


def _cut(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]
