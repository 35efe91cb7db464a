"""What MST, MST++ and Retinexformer share: spectral-wise attention, its blocks, and the U-shape around them.

Written from the descriptions in Cai et al., "Mask-guided Spectral-wise Transformer for Efficient
Hyperspectral Image Reconstruction", CVPR 2022 (arXiv 2111.07910), and "MST++: Multi-stage Spectral-wise
Transformer for Efficient Spectral Reconstruction", CVPRW 2022 (arXiv 2204.07908). Parameter names follow
the published checkpoints, so that those load as they are.

The papers write maps as (B, H, W, C) tokens. Here they are (B, C, H, W) and every linear layer is a 1x1
convolution, which is what the exported graph wants; kept in ``channels_last`` memory they are as fast.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Smallest mean square of a map in a norm, so that a map without signal does not divide by zero.
NORM_FLOOR = 1e-12


class SpectralAttention(nn.Module):
    """Spectral-wise multi-head self-attention (S-MSA) on (B, C, H, W).

    Per head, with q, k, v of c x L: ``softmax(rescale * k^ q^T) v``, where ^ divides each row by its L2
    norm. The heads' results are projected, and a positional embedding made from v is added.

    Args:
        channels: C.
        heads: they split the channels evenly.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.rescale = nn.Parameter(torch.ones(heads, 1, 1))
        self.proj = nn.Linear(channels, channels)
        self.pos_emb = nn.Sequential(_depthwise(channels), nn.GELU(), _depthwise(channels))

    def values(self, x: Tensor) -> Tensor:
        """v of all heads, (B, C, H, W): what the positional embedding is made from."""
        return pointwise(x, self.to_v)

    def attend(self, x: Tensor, values: Tensor) -> Tensor:
        """Mix ``values`` (B, C, H, W) by the attention that x (B, C, H, W) has, and project the result."""
        keys, queries = self._tokens(pointwise(x, self.to_k)), self._tokens(pointwise(x, self.to_q))
        # The logits are normalised in place of the maps: that is the same, and saves passes over them.
        logits = keys @ queries.transpose(-2, -1) / keys.shape[-1]
        logits = logits * _inverse_rms(keys).unsqueeze(-1) * _inverse_rms(queries).unsqueeze(-2)
        mixed = (logits * self.rescale).softmax(dim=-1) @ self._tokens(values)
        return pointwise(mixed.reshape(x.shape), self.proj)

    def _tokens(self, maps: Tensor) -> Tensor:
        """(B, C, H, W) to (B, heads, C / heads, H * W)."""
        batch, channels, height, width = maps.shape
        return maps.reshape(batch, self.heads, channels // self.heads, height * width)


class GeluFeedForward(nn.Module):
    """Feed-forward network with a depthwise 3x3 in its middle, on (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = 4 * channels
        self.net = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.GELU(),
            _depthwise(hidden),
            nn.GELU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class NormedFeedForward(nn.Module):
    """Layer normalisation over the channels of each pixel, then the feed-forward network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fn = GeluFeedForward(channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class SpectralBlocks(nn.Module):
    """A sequence of blocks: x + attention(x), then x + feed-forward(norm(x)).

    Args:
        channels: C.
        attentions: one attention module for each block.
    """

    def __init__(self, channels: int, attentions: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleList([attention, NormedFeedForward(channels)]) for attention in attentions
        )

    def forward(self, x: Tensor, *guides: Tensor) -> Tensor:
        """Run on (B, C, H, W); ``guides`` are handed to every attention."""
        for block in self.blocks:
            attention, feed_forward = block.children()
            x = x + attention(x, *guides)
            x = x + feed_forward(x)
        return x


class SpectralUNet(nn.Module):
    """Encoder, bottleneck and decoder of spectral blocks; each level halves the size and doubles the width.

    Args:
        dim: channels of the top level.
        num_blocks: blocks of every level from the top down; the last is the bottleneck.
        make_attention: builds an attention module from its channels and its level, 0 at the top.
        guides: how many guide maps of ``dim`` channels go down the encoder beside the features.
        image_channels: channels in and out; None: ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_blocks: tuple[int, ...] | list[int],
        make_attention: Callable[[int, int], nn.Module],
        guides: int = 0,
        image_channels: int | None = None,
    ) -> None:
        super().__init__()
        widths = [dim * 2**level for level in range(len(num_blocks))]

        def blocks(level: int) -> SpectralBlocks:
            attentions = [make_attention(widths[level], level) for _ in range(num_blocks[level])]
            return SpectralBlocks(widths[level], attentions)

        bottom = len(num_blocks) - 1
        outside = dim if image_channels is None else image_channels
        self.embedding = nn.Conv2d(outside, dim, 3, padding=1, bias=False)
        self.encoder_layers = nn.ModuleList(
            nn.ModuleList([blocks(level), *(_downsample(widths[level]) for _ in range(1 + guides))])
            for level in range(bottom)
        )
        self.bottleneck = blocks(bottom)
        self.decoder_layers = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.ConvTranspose2d(widths[level + 1], widths[level], 2, stride=2),
                    nn.Conv2d(2 * widths[level], widths[level], 1, bias=False),
                    blocks(level),
                ]
            )
            for level in reversed(range(bottom))
        )
        self.mapping = nn.Conv2d(dim, outside, 3, padding=1, bias=False)

    def transform(self, x: Tensor, *guides: Tensor) -> Tensor:
        """Run all levels on embedded features (B, dim, H, W), H and W multiples of 2 ** levels down.

        ``guides`` may be wider than x: each level's blocks get them at the size the convolutions leave.
        """
        skips = []
        for layer in self.encoder_layers:
            blocks, downsample, *guide_downsamples = layer.children()
            x = blocks(x, *guides)
            skips.append((x, guides))
            x = downsample(x)
            guides = tuple(down(guide) for down, guide in zip(guide_downsamples, guides, strict=True))
        x = self.bottleneck(x, *guides)
        for layer in self.decoder_layers:
            upsample, fuse, blocks = layer.children()
            skip, guides = skips.pop()
            x = blocks(fuse(torch.cat((upsample(x), skip), dim=1)), *guides)
        return x


def pointwise(x: Tensor, linear: nn.Linear) -> Tensor:
    """Apply a linear layer to the channels of (B, C, H, W)."""
    return F.conv2d(x, linear.weight[:, :, None, None], linear.bias)


def unet_num_blocks(state: Mapping[str, Tensor], prefix: str = "") -> list[int]:
    """Read the ``num_blocks`` of the :class:`SpectralUNet` whose parameter names begin with ``prefix``.

    Raises:
        KeyError: there is no such network in the state dict.
    """
    blocks: dict[str, int] = {}
    for key in state:
        match = re.match(re.escape(prefix) + r"(?:encoder_layers\.(\d+)\.0|bottleneck)\.blocks\.(\d+)\.", key)
        if match:
            level = match[1] or "bottleneck"
            blocks[level] = max(blocks.get(level, 0), int(match[2]) + 1)
    return [blocks[str(level)] for level in range(len(blocks) - 1)] + [blocks["bottleneck"]]


def fusion(state: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of the fusion that relatives of MST and MST++ have in front, under either spelling."""
    return state.get("fution.weight", state.get("fusion.weight"))


def _inverse_rms(tokens: Tensor) -> Tensor:
    return tokens.square().mean(dim=-1).clamp_min(NORM_FLOOR).rsqrt()


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)


def _downsample(channels: int) -> nn.Conv2d:
    """(B, C, H, W) to (B, 2C, H // 2, W // 2)."""
    return nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False)
