"""HVI-CIDNet: two U-shaped branches, for colour and for intensity, that attend to each other.

Written from the description in Yan et al., "HVI: A New Color Space for Low-light Image Enhancement", CVPR
2025 (arXiv 2502.20272). Parameter names follow the published checkpoints, so that those load as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.families.cidnet.colour import HVITransform
from csa2glmha.families.resizing import Rescale
from csa2glmha.networks import RestorationModel, reflect_pad_to_multiple

LAYER_NORM_EPS = 1e-6


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of each pixel of a (B, C, H, W) map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scale = (centred.square().mean(1, keepdim=True) + LAYER_NORM_EPS).rsqrt()
        return centred * scale * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class CAB(nn.Module):
    """Cross attention across channels: queries of one map, keys and values of another, (B, C, H, W) each."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.q = nn.Conv2d(channels, channels, 1, bias=False)
        self.q_dwconv = _depthwise(channels)
        self.kv = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.kv_dwconv = _depthwise(2 * channels)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor, query_input: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        shape = (batch, -1, self.heads, channels // self.heads, height * width)
        query = F.normalize(self.q_dwconv(self.q(query_input)).reshape(shape)[:, 0], dim=-1)
        key, value = self.kv_dwconv(self.kv(x)).reshape(shape).unbind(1)
        logits = query @ F.normalize(key, dim=-1).transpose(-2, -1) * self.temperature
        y = logits.softmax(dim=-1) @ value
        return self.project_out(y.reshape(batch, channels, height, width))


class IEL(nn.Module):
    """Feed-forward network of two halves that multiply each other, on (B, C, H, W)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.dwconv = _depthwise(2 * hidden)
        self.dwconv1 = _depthwise(hidden)
        self.dwconv2 = _depthwise(hidden)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        first = torch.tanh(self.dwconv1(first)) + first
        second = torch.tanh(self.dwconv2(second)) + second
        return self.project_out(first * second)


class LCA(nn.Module):
    """x + attention(norm(x), norm(other)), then the feed-forward network of its norm.

    Args:
        channels: of both maps.
        heads: of the attention.
        hidden: channels within the feed-forward network.
        residual: the result of the feed-forward network is added, as in the branch of intensity; otherwise
            it takes the place of x, as in the branch of colour.
    """

    def __init__(self, channels: int, heads: int, hidden: int, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.gdfn = IEL(channels, hidden)
        self.norm = ChannelNorm(channels)
        self.ffn: nn.Module = CAB(channels, heads)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        x = x + self.ffn(self.norm(other), self.norm(x))
        y = self.gdfn(self.norm(x))
        return x + y if self.residual else y


class Down(nn.Module):
    """(B, C, H, W) to (B, D, H/2, W/2)."""

    def __init__(self, channels: int, out_channels: int, norm: bool) -> None:
        super().__init__()
        self.norm = ChannelNorm(out_channels) if norm else nn.Identity()
        self.prelu = nn.PReLU()
        self.down = nn.Sequential(_conv(channels, out_channels, padding=1), Rescale(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.prelu(self.down(x)))


class Up(nn.Module):
    """(B, C, H, W) and maps (B, D, 2H, 2W) of the way down to (B, D, 2H, 2W)."""

    def __init__(self, channels: int, out_channels: int, norm: bool) -> None:
        super().__init__()
        self.norm = ChannelNorm(out_channels) if norm else nn.Identity()
        self.prelu = nn.PReLU()
        self.up_scale = nn.Sequential(_conv(channels, out_channels, padding=1), Rescale(2))
        self.up = nn.Conv2d(2 * out_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.norm(self.prelu(self.up(torch.cat((self.up_scale(x), skip), 1))))


class CIDNet(RestorationModel):
    """The network, for RGB images (B, 3, H, W) of any H and W, values in [0, 1].

    Args:
        channels: widths of the four levels from the top down.
        heads: attention heads of the three lower levels; there is no attention at the top.
        ffn_expansion_factor: hidden width of the feed-forward parts is int(width * factor).
        norm: maps are normalised where the level changes.
    """

    architecture = "cidnet"

    def __init__(
        self,
        channels: tuple[int, ...] | list[int] = (36, 36, 72, 144),
        heads: tuple[int, ...] | list[int] = (2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "channels": list(channels),
            "heads": list(heads),
            "ffn_expansion_factor": ffn_expansion_factor,
            "norm": norm,
        }

        def attention(level: int, residual: bool) -> LCA:
            width = channels[level]
            return LCA(width, heads[level - 1], int(width * ffn_expansion_factor), residual)

        def edge(inside: int, outside: int) -> nn.Sequential:
            return nn.Sequential(nn.ReplicationPad2d(1), _conv(inside, outside))

        top, second, third, bottom = channels
        self.HVE_block0 = edge(3, top)
        self.HVE_block1 = Down(top, second, norm)
        self.HVE_block2 = Down(second, third, norm)
        self.HVE_block3 = Down(third, bottom, norm)
        self.HVD_block3 = Up(bottom, third, norm)
        self.HVD_block2 = Up(third, second, norm)
        self.HVD_block1 = Up(second, top, norm)
        self.HVD_block0 = edge(top, 2)
        self.IE_block0 = edge(1, top)
        self.IE_block1 = Down(top, second, norm)
        self.IE_block2 = Down(second, third, norm)
        self.IE_block3 = Down(third, bottom, norm)
        self.ID_block3 = Up(bottom, third, norm)
        self.ID_block2 = Up(third, second, norm)
        self.ID_block1 = Up(second, top, norm)
        self.ID_block0 = edge(top, 1)
        self.HV_LCA1, self.I_LCA1 = attention(1, residual=False), attention(1, residual=True)
        self.HV_LCA2, self.I_LCA2 = attention(2, residual=False), attention(2, residual=True)
        self.HV_LCA3, self.I_LCA3 = attention(3, residual=False), attention(3, residual=True)
        self.HV_LCA4, self.I_LCA4 = attention(3, residual=False), attention(3, residual=True)
        self.HV_LCA5 = attention(2, residual=False)
        self.HV_LCA6, self.I_LCA6 = attention(1, residual=False), attention(1, residual=True)
        self.trans = HVITransform()

    @property
    def in_channels(self) -> int:
        return 3

    @property
    def out_channels(self) -> int:
        return 3

    def forward(self, image: Tensor) -> Tensor:
        """Restore (B, 3, H, W); the result has the same shape, and values in [0, 1]."""
        height, width = image.shape[-2:]
        hvi = self.trans(reflect_pad_to_multiple(image, self.size_multiple))
        colour0, light0 = self.HVE_block0(hvi), self.IE_block0(hvi[:, 2:3])
        colour, light = self.HVE_block1(colour0), self.IE_block1(light0)
        colour1, light1 = self.HV_LCA1(colour, light), self.I_LCA1(light, colour)
        colour, light = self.HVE_block2(colour1), self.IE_block2(light1)
        colour2, light2 = self.HV_LCA2(colour, light), self.I_LCA2(light, colour)
        # Down to the last level go the maps before the attention; those after it are for the way up.
        colour, light = self.HVE_block3(colour), self.IE_block3(light)
        colour, light = self.HV_LCA3(colour, light), self.I_LCA3(light, colour)
        colour, light = self.HV_LCA4(colour, light), self.I_LCA4(light, colour)
        colour, light = self.HVD_block3(colour, colour2), self.ID_block3(light, light2)
        colour = self.HV_LCA5(colour, light)
        colour, light = self.HVD_block2(colour, colour1), self.ID_block2(light, light1)
        colour, light = self.HV_LCA6(colour, light), self.I_LCA6(light, colour)
        colour, light = self.HVD_block1(colour, colour0), self.ID_block1(light, light0)
        change = torch.cat((self.HVD_block0(colour), self.ID_block0(light)), 1)
        x = self.trans.inverse(change.float() + hvi)
        return x[..., :height, :width]


def _conv(channels: int, out_channels: int, padding: int = 0) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, padding=padding, bias=False)


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
