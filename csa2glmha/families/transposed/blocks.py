"""What Restormer and PromptIR share: transposed attention, its blocks, and what changes the level.

Written from the description in Zamir et al., "Restormer: Efficient Transformer for High-Resolution
Image Restoration", CVPR 2022 (arXiv 2111.09881). Parameter names follow the published checkpoints,
so that those load as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel of a (B, C, H, W) map.

    Args:
        channels: C.
        with_bias: the "WithBias" form, (x - mean) / std * weight + bias. Otherwise "BiasFree":
            x / std * weight, the mean removed from the variance but not from x.
    """

    def __init__(self, channels: int, with_bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels)) if with_bias else None

    def forward(self, x: Tensor) -> Tensor:
        # torch.var_mean over an axis that is not the last takes four times as long on a CPU.
        centred = x - x.mean(1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(1, keepdim=True) + LAYER_NORM_EPS)
        weight = self.weight.view(-1, 1, 1)
        if self.bias is None:
            return x * scale * weight
        return centred * scale * weight + self.bias.view(-1, 1, 1)


class Norm(nn.Module):
    """Holds the layer norm under the name ``body``, where published checkpoints have it."""

    def __init__(self, channels: int, with_bias: bool) -> None:
        super().__init__()
        self.body = ChannelLayerNorm(channels, with_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention: self-attention across the channels of (B, C, H, W)."""

    def __init__(self, channels: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=bias)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv_dwconv(self.qkv(x))
        qkv = qkv.reshape(batch, 3, self.heads, channels // self.heads, height * width)
        query, key, value = qkv.unbind(1)
        query = F.normalize(query, dim=-1)
        key = F.normalize(key, dim=-1)
        logits = (query @ key.transpose(-2, -1)) * self.temperature
        y = logits.softmax(dim=-1) @ value
        return self.project_out(y.reshape(batch, channels, height, width))


class GDFN(nn.Module):
    """Gated-Dconv feed-forward network on (B, C, H, W)."""

    def __init__(self, channels: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=bias)
        self.dwconv = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, channels: int, heads: int, hidden: int, bias: bool, norm_bias: bool) -> None:
        super().__init__()
        self.norm1 = Norm(channels, norm_bias)
        self.attn: nn.Module = MDTA(channels, heads, bias)
        self.norm2 = Norm(channels, norm_bias)
        self.ffn = GDFN(channels, hidden, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


def stage(count: int, channels: int, heads: int, hidden: int, bias: bool, norm_bias: bool) -> nn.Sequential:
    """So many blocks, one after the other."""
    return nn.Sequential(*(TransformerBlock(channels, heads, hidden, bias, norm_bias) for _ in range(count)))


class PatchEmbedding(nn.Module):
    """Overlapping embedding of pixels: one 3x3 convolution."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class Downsample(nn.Module):
    """(B, C, H, W) to (B, 2C, H/2, W/2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Upsample(nn.Module):
    """(B, C, H, W) to (B, C/2, 2H, 2W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)
