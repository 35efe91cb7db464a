"""Statistics of pointwise layers: everything their attention does depends on second moments alone.

So one small matrix per image stands for its maps, and layers can be fitted to any number of images
without looking at one again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from csa2glmha.attention.canonical import ChannelAttention, gram_logits
from csa2glmha.attention.guide import pooled_statistics


@dataclass
class LayerMoments:
    """Of every calibration image, on the CPU in double precision.

    Attributes:
        form: the teacher's layer; pointwise, without biases but the output's.
        grams: (C, C) each, mean products of the input's channels.
        values: (heads * c, heads * c) each, those of the values as the attention sees them.
        features: (2C,) each, pooled statistics of the input.
    """

    form: ChannelAttention
    grams: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def add(self, x: Tensor, factors: Tensor | None = None) -> None:
        """Add a batch of inputs of the layer, (B, C, H, W).

        ``factors`` (1 or B, heads * c, H, W) multiply the values before the attention.
        """
        values = self.form.values.mix(x)
        self.grams.extend(_gram(x))
        self.values.extend(_gram(values if factors is None else values * factors))
        self.features.extend(pooled_statistics(x).cpu().double())

    def freeze(self) -> Moments:
        """All images at once."""
        return Moments(
            self.form, torch.stack(self.grams), torch.stack(self.values), torch.stack(self.features)
        )


@dataclass(frozen=True)
class Moments:
    """The same of N images, stacked: grams (N, C, C), values (N, heads * c, heads * c), features (N, 2C)."""

    form: ChannelAttention
    grams: Tensor
    values: Tensor
    features: Tensor

    def per_head(self, weight: Tensor) -> Tensor:
        """A projection (heads * c, C) as (heads, c, C), in the moments' precision."""
        return weight.to(self.grams).view(self.form.heads, self.form.head_channels, -1)

    def stacked(self) -> Tensor:
        """W_Q over W_K: the filters of each head's queries and keys, (heads, 2c, C)."""
        form = self.form
        return torch.cat((self.per_head(form.queries.pointwise), self.per_head(form.keys.pointwise)), 1)

    def logits(self) -> Tensor:
        """The teacher's, (N, heads, c, c)."""
        queries, keys = self.stacked().chunk(2, 1)
        gram = self.grams.unsqueeze(1)
        temperature = self.form.temperature.to(gram).view(-1, 1, 1)
        return gram_logits(gram, queries, keys, temperature)

    def maps(self) -> Tensor:
        """The teacher's attention, (N, heads, c, c)."""
        return self.form.attention(self.logits())

    def outputs(self) -> Tensor:
        """The teacher's output projection times its attention, (N, heads, C, c)."""
        heads, c = self.form.heads, self.form.head_channels
        output = self.form.output.to(self.grams).view(-1, heads, c).transpose(0, 1)
        return output @ self.maps()

    def head_values(self) -> Tensor:
        """Mean over the images of the values' moments inside each head, (heads, c, c)."""
        heads, c = self.form.heads, self.form.head_channels
        blocks = self.values.mean(0).view(heads, c, heads, c)
        return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def _gram(maps: Tensor) -> Tensor:
    flat = maps.flatten(2)
    return (flat @ flat.transpose(-2, -1) / flat.shape[-1]).cpu().double()
