"""Attention across channels that has no canonical form, each for a reason of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks.forms import MapAttention


class TopKAttention(MapAttention):
    """The largest half of every row of logits."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature
        index = logits.topk(logits.shape[-1] // 2, dim=-1).indices
        mask = torch.zeros_like(logits).scatter_(-1, index, 1.0)
        return logits.masked_fill(mask == 0, float("-inf")).softmax(-1)


class WindowAttention(MapAttention):
    """Within windows of 4 x 4 pixels."""

    def rows(self, maps: Tensor) -> Tensor:
        batch, channels, height, width = maps.shape
        windows = maps.view(batch, channels, height // 4, 4, width // 4, 4).permute(0, 2, 4, 1, 3, 5)
        return windows.reshape(-1, self.heads, channels // self.heads, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.sides(x)
        y = (self.weights(q, k) @ v).reshape(x.shape[0], x.shape[2] // 4, x.shape[3] // 4, -1, 4, 4)
        return self.out(y.permute(0, 3, 1, 4, 2, 5).reshape(x.shape))


class SameAttention(MapAttention):
    """Values are their own keys."""

    def forward(self, x: Tensor) -> Tensor:
        q, _, v = self.sides(x)
        return self.out((self.weights(q, v) @ v).reshape(x.shape))


class PlainAttention(MapAttention):
    """No norm of queries and keys, but a division by the number of pixels."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (q @ k.transpose(-2, -1) / q.shape[-1] * self.temperature).softmax(-1)


class HalfNormAttention(MapAttention):
    """A norm of the queries alone."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return (F.normalize(q, dim=-1) @ k.transpose(-2, -1) * self.temperature).softmax(-1)


class PixelNormAttention(MapAttention):
    """Queries and keys are normalised over the channels."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
        return (q @ k.transpose(-2, -1) * self.temperature).softmax(-1)


class BiasedAttention(MapAttention):
    """A learned bias of the logits."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.bias = nn.Parameter(torch.zeros(2, channels // 2, channels // 2))

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return (q @ k.transpose(-2, -1) * self.temperature + self.bias).softmax(-1)


class SizedAttention(MapAttention):
    """The temperature grows with the number of pixels."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return (q @ k.transpose(-2, -1) * self.temperature * q.shape[-1] ** 0.5).softmax(-1)


class LinearAttention(MapAttention):
    """No softmax at all."""

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        return F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * self.temperature


class Core(nn.Module):
    """The attention alone: its projections are outside."""

    def __init__(self) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(2, 1, 1))

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        return (q @ k.transpose(-2, -1) * self.temperature).softmax(-1) @ v


class OutsideBlock(nn.Module):
    """A block that projects for its attention, and has a feed-forward network, too."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.core = Core()
        self.feed = nn.Sequential(
            nn.Conv2d(channels, channels, 1), nn.GELU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.reshape(x.shape[0], 2, -1, x[0, 0].numel()) for part in self.qkv(x).chunk(3, 1))
        return self.feed(self.core(q, k, v).reshape(x.shape))


class WideAttention(MapAttention):
    """Queries, keys and values by one 3 x 3 convolution across channels."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 3, padding=1)
        self.spread = nn.Identity()  # type: ignore[assignment]


class SmallKeysAttention(MapAttention):
    """Keys at half the size, queries too."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.small = nn.Conv2d(channels, 2 * channels, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        _, _, v = self.sides(x)
        q, k = (self.rows(part) for part in self.small(x).chunk(2, dim=1))
        return self.out((self.weights(q, k) @ v).reshape(x.shape))


class OverwritingAttention(MapAttention):
    """Writes to the maps that it is given, which others go on with."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        x.relu_()
        return y
