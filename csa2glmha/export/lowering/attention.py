"""GLMHA layers as they are deployed: the same mathematics in fewer passes over the maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.attention.canonical import NORM_FLOOR, generated_logits
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.core import activated, by_heads, folded_heads
from csa2glmha.attention.glmha import GLMHA, Generator
from csa2glmha.attention.guide import CalibrationNetwork
from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.export.lowering.folding import (
    CHANNEL_BLOCK,
    Affine,
    Laid,
    conv_pair,
    depthwise_width,
    fold_affine,
)
from csa2glmha.export.lowering.primitives import (
    cast_like,
    channel_product,
    maps_like,
    maps_of_last,
    pixel_share,
    rows_last,
    square_sum,
    tokens,
    tokens_last,
)


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


def pooled_squares(*inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and mean square over the pixels of (B, C, H, W): (B, C) each, C of all inputs together."""
    rows, share = [x.flatten(2).float() for x in inputs], pixel_share(inputs[0])
    means = [each.sum(2) * share for each in rows]
    squares = [square_sum(each, 2).squeeze(2) * share for each in rows]
    if len(inputs) == 1:
        return means[0], squares[0]
    return torch.cat(means, 1), torch.cat(squares, 1)


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone())
    return made


class DeployedCore(Laid):
    """What deployed layers have in common: from small matrices to small matrices, all in float32."""

    def __init__(self, layer: GuidedAttention, affine: Affine | None = None) -> None:
        super().__init__()
        self.config = layer.config
        self.scale = None
        if layer.temperature is not None:
            self.scale = nn.Parameter(layer.scale().detach().clone())
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
        # With an axis for the batch: OpenVINO 2024.6 and 2025.2 compile no bf16 without it.
        self.expand_values = None if expand is None else copied(expand)
        self.output = nn.Parameter(by_heads(layer.output.detach(), self.config.heads).contiguous().clone())
        bias = layer.output_bias
        self.output_bias = None if bias is None else nn.Parameter(bias.detach().clone())

    def guidance(
        self, pooled: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Mode strengths and gates from pooled maps, which may be missing where there is no guide."""
        if self.guide is None or pooled is None:
            return None, None, None
        strengths, key_gates, value_gates = self.guide(*pooled)
        return strengths, key_gates, value_gates

    def key_gate(self, gates: Tensor | None) -> Tensor | None:
        if gates is None or not self.config.key_gates:
            return None
        return gates.view(-1, self.config.heads, 1, self.config.rank_k)

    def attention(self, logits: Tensor | None, strengths: Tensor | None) -> Tensor:
        """The map of corrected logits; without logits there are the corrections alone."""
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
        return activated(total, self.config.activation)

    def folded(self, attention: Tensor, gates: Tensor | None) -> Tensor:
        """Output projection, attention and value expansion in one: (B, out_channels, heads * rank_v)."""
        gate = None if gates is None else gates.view(-1, self.config.heads, 1, self.config.rank_v)
        return folded_heads(self.output, attention, self.expand_values, gate)

    def mixed(self, folded: Tensor, values: Tensor, channels: int, like: Tensor) -> Tensor:
        """The output (B, out_channels, H, W) from :meth:`folded` and values (B, channels, H, W)."""
        matrix = cast_like(folded, values)
        if self.channels_last:
            rows = channel_product(rows_last(values, channels), matrix.transpose(1, 2))
            y = maps_of_last(rows, like, self.output.shape[1])
        else:
            y = maps_like(channel_product(matrix, values.flatten(2)), like)
        return y if self.output_bias is None else y + cast_like(self.output_bias.view(1, -1, 1, 1), y)


class DeployedGLMHA(DeployedCore):
    """In the place of :class:`~csa2glmha.attention.glmha.GLMHA` and the layer norm before it.

    Args:
        layer: the layer; it is not changed.
        affine: of the layer norm; None: there is none.
        query_affine: likewise, of the second input, where the layer has one.
    """

    def __init__(
        self, layer: GLMHA, affine: Affine | None = None, query_affine: Affine | None = None
    ) -> None:
        super().__init__(layer, _of_all_inputs(layer.config, affine, query_affine))
        queries, keys, values = layer.widths
        # Narrow keys and values share a block of channels; splitting wide maps would be a copy of them.
        narrow = keys % CHANNEL_BLOCK != 0 or values % CHANNEL_BLOCK != 0
        shares = [[queries], [keys, values]] if narrow else [[queries], [keys], [values]]
        if not keys:
            shares = [[values]]
        self.parts, self.shares = nn.ModuleList(), [len(counts) for counts in shares]
        self.splits: list[list[int]] = []
        self.sources: list[int] = []
        generators = layer.generators()[-sum(self.shares) :]  # without keys there are no queries
        for counts in shares:
            own = generators[0].pointwise is layer.query_pointwise
            count, width = sum(counts), depthwise_width(sum(counts))
            self.parts.append(_lowered(generators[0], count, width, query_affine if own else affine))
            self.splits.append(counts if width == count else [*counts, width - count])
            self.sources.append(int(own))
            generators = generators[len(counts) :]
        self.expand_queries = None if layer.expand_queries is None else copied(layer.expand_queries)
        self.expand_keys = None if layer.expand_keys is None else copied(layer.expand_keys)

    def generate(self, inputs: tuple[Tensor, ...]) -> list[Tensor]:
        """The maps of queries and keys, where there are any, and values, (B, heads * rank, H, W) each."""
        maps: list[Tensor] = []
        for part, sizes, count, source in zip(
            self.parts, self.splits, self.shares, self.sources, strict=True
        ):
            made = part(inputs[source])
            pieces = [made] if len(sizes) == 1 else made.split(sizes, dim=1)
            maps.extend(pieces[index] for index in range(count))  # a trace cannot iterate over them
        return maps

    def forward(
        self,
        x: Tensor,
        query_input: Tensor | None = None,
        pooled: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As the layer is called; ``pooled`` are the means that the guide reads, where they are known."""
        inputs = (x,) if query_input is None else (x, query_input)
        *logit_maps, value_maps = self.generate(inputs)
        if self.guide is not None and pooled is None:
            pooled = pooled_squares(*inputs)
        strengths, key_gates, value_gates = self.guidance(pooled)
        logits = None
        if logit_maps:
            heads = self.config.heads
            laid = tokens_last if self.channels_last else tokens
            queries = laid(logit_maps[0], heads, self.config.rank_q).float()
            keys = laid(logit_maps[1], heads, self.config.rank_k).float()
            logits = self.logits(queries, keys, pixel_share(x), self.key_gate(key_gates))
        attention = self.attention(logits, strengths)
        return self.mixed(
            self.folded(attention, value_gates), value_maps, self.config.heads * self.config.rank_v, x
        )

    def logits(self, queries: Tensor, keys: Tensor, share: Tensor, gate: Tensor | None) -> Tensor:
        """S for queries and keys (B, heads, rank, L), before static and guided modes are added.

        Channels-last they are (B, heads, L, rank).
        """
        assert self.scale is not None
        cross = self._product(queries, keys) * share
        queries = (
            self._squares(queries) if self.expand_queries is None else self._product(queries, queries)
        ) * share
        keys = (
            self._squares(keys).transpose(2, 3) if self.expand_keys is None else self._product(keys, keys)
        ) * share
        products = cross, queries, keys
        return generated_logits(products, self.expand_queries, self.expand_keys, self.scale, gate)

    def _product(self, first: Tensor, second: Tensor) -> Tensor:
        """Sums over the pixels of every channel's products with every channel."""
        if self.channels_last:
            return first.transpose(2, 3) @ second
        return first @ second.transpose(2, 3)

    def _squares(self, values: Tensor) -> Tensor:
        """Sums over the pixels of every channel's squares: (B, heads, rank, 1)."""
        return square_sum(values, 2).transpose(2, 3) if self.channels_last else square_sum(values, 3)


def copied(parameter: Tensor) -> nn.Parameter:
    """The parameter with an axis for the batch."""
    return nn.Parameter(parameter.detach().unsqueeze(0).clone())


def _lowered(generator: Generator, count: int, width: int, affine: Affine | None) -> nn.Module:
    """So many channels from the generator's first on, as convolutions of that width."""
    mixing, spreading, channels = generator
    cut = slice(channels.start, channels.start + count)
    weight, bias = mixing.weight[cut, :, 0, 0], _cut(mixing.bias, cut)
    if affine is not None:
        weight, bias = fold_affine(weight, bias, affine)
    if spreading is None:
        return conv_pair(weight, bias, None, None, width)
    kernels, offset = spreading.weight[cut], _cut(spreading.bias, cut)
    return conv_pair(weight, bias, kernels, offset, width, spreading.dilation[0])


def _of_all_inputs(config: GLMHAConfig, *affines: Affine | None) -> Affine | None:
    """What pooled maps lack of the layer norms of a layer's inputs, one after the other."""
    if config.query_channels is None:
        return affines[0]
    if all(affine is None for affine in affines):
        return None
    weights, biases = [], []
    for affine, channels in zip(affines, (config.channels, config.query_channels), strict=True):
        weight = torch.ones(channels) if affine is None else affine.weight
        bias = None if affine is None else affine.bias
        weights.append(weight)
        biases.append(torch.zeros_like(weight) if bias is None else bias)
    return Affine(torch.cat(weights), torch.cat(biases), subtract_mean=False)


def _cut(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]
