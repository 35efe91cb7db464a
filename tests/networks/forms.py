"""Attention across channels that has a canonical form, written as research code writes it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def depthwise(channels: int, kernel: int = 3, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    """A depthwise convolution that keeps the size."""
    padding = dilation * (kernel // 2)
    return nn.Conv2d(channels, channels, kernel, 1, padding, dilation, groups=channels, bias=bias)


class MapAttention(nn.Module):
    """One convolution pair for queries, keys and values, on maps."""

    def __init__(self, channels: int, heads: int = 2, bias: bool = True, dilation: int = 1) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.spread = depthwise(3 * channels, dilation=dilation, bias=bias)
        self.out = nn.Conv2d(channels, channels, 1, bias=bias)

    def rows(self, maps: Tensor) -> Tensor:
        """(B, heads, c, L)."""
        return maps.reshape(maps.shape[0], self.heads, -1, maps.shape[2] * maps.shape[3])

    def sides(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.rows(part) for part in self.spread(self.qkv(x)).chunk(3, dim=1))
        return q, k, v

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return ((q @ k.transpose(-2, -1)) * self.temperature).softmax(dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.sides(x)
        return self.out((self.weights(q, k) @ v).reshape(x.shape))


class DilatedAttention(MapAttention):
    """As before, the depthwise part dilated."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, dilation=2)


class InterleavedAttention(MapAttention):
    """Heads take every second channel, and keys are the rows of the first product."""

    def rows(self, maps: Tensor) -> Tensor:
        batch, channels, height, width = maps.shape
        return maps.view(batch, channels // self.heads, self.heads, height * width).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.sides(x)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        turned = (torch.einsum("bhdn,bhcn->bhdc", k, q) * self.temperature).softmax(dim=2)
        return self.out(torch.einsum("bhdc,bhdn->bhcn", turned, v).transpose(1, 2).reshape(x.shape))


class LateNormAttention(MapAttention):
    """The logits are divided by the norms, not the maps, and the temperature is stored as a logarithm."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        logits = q @ k.transpose(-2, -1) / q.shape[-1]
        query_rms, key_rms = (side.square().mean(-1).clamp_min(1e-12).rsqrt() for side in (q, k))
        logits = logits * query_rms.unsqueeze(-1) * key_rms.unsqueeze(-2)
        return (logits * self.temperature.clamp(max=2).exp()).softmax(dim=-1)


class InPlaceAttention(MapAttention):
    """Writes to what it has computed, through views too."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        q = q.div_(q.norm(dim=-1, keepdim=True))
        weights = super().weights(q, k)
        q[:, :, 1:].mul_(0)
        return weights


class TokenAttention(nn.Module):
    """Linear layers with biases, on tokens (B, L, C); called with height and width."""

    def __init__(self, channels: int, heads: int = 2, fused: bool = False) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        batch, pixels, channels = tokens.shape
        assert pixels == height * width
        qkv = self.qkv(tokens).reshape(batch, pixels, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        q, k, v = qkv.unbind(0)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if self.fused:
            y = F.scaled_dot_product_attention(q * self.temperature, k, v, scale=1.0)
        else:
            y = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v
        return self.proj(y.permute(0, 3, 1, 2).reshape(batch, pixels, channels))


class SpreadTokenAttention(TokenAttention):
    """The same with a depthwise convolution behind the projection, which needs height and width."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.spread = depthwise(3 * channels, bias=True)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        batch, pixels, channels = tokens.shape
        maps = self.spread(self.qkv(tokens).transpose(1, 2).reshape(batch, -1, height, width))
        q, k, v = maps.reshape(batch, 3, self.heads, -1, pixels).unbind(1)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        y = (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v
        return self.proj(y.reshape(batch, channels, pixels).transpose(1, 2))


class TokenBlock(nn.Module):
    """Attention on tokens in a block on maps; height and width are given by keyword."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(attention.get_submodule("proj").in_features)
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        tokens = self.norm(x.flatten(2).transpose(1, 2))
        y = self.attention(tokens, width=width, height=height)
        return y.transpose(1, 2).reshape(x.shape)


class LastAttention(nn.Module):
    """Channels last: V times a map for the attention, and a branch made of all of V."""

    def __init__(self, channels: int, heads: int = 2, factor: bool = True, branch: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.rescale = nn.Parameter(torch.ones(heads, 1, 1))
        self.proj = nn.Linear(channels, channels)
        self.factor = factor
        self.pos_emb = nn.Sequential(depthwise(channels), nn.GELU(), depthwise(channels)) if branch else None

    def forward(self, x: Tensor, light: Tensor | None = None) -> Tensor:
        batch, height, width, channels = x.shape

        def rows(maps: Tensor) -> Tensor:
            return maps.reshape(batch, height * width, self.heads, -1).permute(0, 2, 3, 1)

        values = self.to_v(x)
        v = rows(values) if light is None or not self.factor else rows(values) * rows(light)
        q, k = (F.normalize(rows(layer(x)), dim=-1) for layer in (self.to_q, self.to_k))
        y = (k @ q.transpose(-2, -1) * self.rescale).softmax(-1) @ v
        y = self.proj(y.permute(0, 3, 1, 2).reshape(batch, height, width, channels))
        if self.pos_emb is None:
            return y
        return self.pos_emb(values.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + y


class LitBlock(nn.Module):
    """Channels-last attention in a block on maps, lit by a map of its own."""

    def __init__(self, channels: int, factor: bool = True, branch: bool = True) -> None:
        super().__init__()
        self.light = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = LastAttention(channels, factor=factor, branch=branch)

    def forward(self, x: Tensor) -> Tensor:
        light = self.light(x).sigmoid().permute(0, 2, 3, 1)
        return self.attention(x.permute(0, 2, 3, 1), light=light).permute(0, 3, 1, 2)


class CrossAttention(MapAttention):
    """Queries from a second input, with channels of its own."""

    def __init__(self, channels: int, other: int, heads: int = 2) -> None:
        super().__init__(channels, heads)
        self.q = nn.Conv2d(other, channels, 1)
        self.q_spread = depthwise(channels)
        self.qkv = nn.Conv2d(channels, 2 * channels, 1)
        self.spread = depthwise(2 * channels)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        q = self.rows(self.q_spread(self.q(y)))
        k, v = (self.rows(part) for part in self.spread(self.qkv(x)).chunk(2, dim=1))
        return self.out((self.weights(q, k) @ v).reshape(x.shape))


class CrossBlock(nn.Module):
    """One cross attention that is called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.other = nn.Conv2d(channels, 6, 3, padding=1)
        self.attention = CrossAttention(channels, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.other(x), x)
        return self.attention(x=x, y=self.other(x).relu())


class ReluAttention(MapAttention):
    """ReLU in place of the softmax."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return F.relu(q @ k.transpose(-2, -1) * self.temperature)
