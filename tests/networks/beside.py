"""Attention across channels with something beside it that stays as it is."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.forms import CrossAttention, LastAttention, MapAttention, TokenAttention, depthwise


class SummedAttention(MapAttention):
    """A convolution of the input is added before the output projection."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.local = depthwise(channels)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.sides(x)
        return self.out((self.weights(q, k) @ v).reshape(x.shape) + self.local(x))


class GatedAttention(MapAttention):
    """The attended values times a gate that is made of the input, before the output projection."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gate = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.sides(x)
        return self.out((self.weights(q, k) @ v).reshape(x.shape) * self.gate(x).sigmoid())


class InsideFactorAttention(LastAttention):
    """V times what a submodule makes of the input, and a branch made of all of V; channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.mask = nn.Sequential(depthwise(channels, 5), nn.Sigmoid())

    def forward(self, x: Tensor, light: Tensor | None = None) -> Tensor:
        return super().forward(x, self.mask(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class LastBlock(nn.Module):
    """The same in a block on maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = InsideFactorAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class InteractingAttention(TokenAttention):
    """A convolution of V and the attended values gate each other, and are added before the projection."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.local = nn.Sequential(depthwise(channels), nn.BatchNorm2d(channels), nn.GELU())
        self.from_local = nn.Conv2d(channels, 1, 1)
        self.from_attended = nn.Conv2d(channels, channels, 1)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        batch, pixels, channels = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, pixels, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        local = self.local(v.reshape(batch, channels, height, width))
        y = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * self.temperature).softmax(-1) @ v
        attended = y.reshape(batch, channels, height, width)
        mixed = attended * self.from_local(local).sigmoid() + local * self.from_attended(attended).sigmoid()
        return self.proj(mixed.flatten(2).transpose(1, 2))


class FusedAttention(MapAttention):
    """One function for both products, heads of which each has its queries, keys and values side by side."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.local = depthwise(channels)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.spread(self.qkv(x))
        q, k, v = maps.reshape(x.shape[0], self.heads, 3, -1, x[0, 0].numel()).unbind(2)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = F.scaled_dot_product_attention(q * self.temperature, k, v, scale=1.0)
        return self.out(y.reshape(x.shape) + self.local(x))


class TurnedAttention(MapAttention):
    """Keys are the rows of the map, which is named by letters; heads take every second channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gate = nn.Conv2d(channels, 1, 1)

    def rows(self, maps: Tensor) -> Tensor:
        return maps.unflatten(1, (-1, self.heads)).transpose(1, 2).flatten(3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.sides(x)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        turned = (torch.einsum("bhdn,bhcn->bhdc", k, q) * self.temperature).softmax(dim=2)
        y = torch.einsum("bhdc,bhdn->bhcn", turned, v).transpose(1, 2).reshape(x.shape)
        return self.out(y * self.gate(x).tanh())


class CrossGatedAttention(CrossAttention):
    """Queries from another input, which gates the attended values, too."""

    def __init__(self, channels: int, other: int) -> None:
        super().__init__(channels, other)
        self.gate = nn.Conv2d(other, channels, 1)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        q = self.rows(self.q_spread(self.q(y)))
        k, v = (self.rows(part) for part in self.spread(self.qkv(x)).chunk(2, dim=1))
        return self.out((self.weights(q, k) @ v).reshape(x.shape) * self.gate(y).sigmoid())


class CrossGatedBlock(nn.Module):
    """One of these that is called twice, by position and by keyword."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.other = nn.Conv2d(channels, 6, 3, padding=1)
        self.attention = CrossGatedAttention(channels, 6)

    def forward(self, x: Tensor) -> Any:
        x = self.attention(self.other(x), x)
        return self.attention(x=x, y=self.other(x).relu())


class PooledAttention(SummedAttention):
    """The attended values times a gate that is made of their mean over all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.sides(x)
        y = (self.weights(q, k) @ v).reshape(x.shape)
        return self.out(y * self.pool(y).sigmoid() + self.local(x))


class FunctionalAttention(SummedAttention):
    """Queries, keys and values by a function that takes the weights."""

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = F.conv2d(x, self.qkv.weight, self.qkv.bias)
        q, k, v = (self.rows(part) for part in self.spread(maps).chunk(3, dim=1))
        return q, k, v


class SharedQueriesAttention(SummedAttention):
    """The queries are added before the output projection."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.sides(x)
        return self.out((self.weights(q, k) @ v + q).reshape(x.shape))


class ShortcutAttention(MapAttention):
    """The input is added inside of the module."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class MixedBranchAttention(MapAttention):
    """Something that is not made of V is added to the result."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.local = depthwise(channels)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.local(x)
