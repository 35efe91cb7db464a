"""Restormer: an encoder-decoder of transformer blocks whose attention runs across channels.

Written from the description in Zamir et al., "Restormer: Efficient Transformer for High-Resolution
Image Restoration", CVPR 2022 (arXiv 2111.09881). Parameter names follow the published checkpoints,
so that those load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csa2glmha.families.transposed.blocks import Upsample, stage
from csa2glmha.families.transposed.encoder import EncodingNetwork
from csa2glmha.networks import reflect_pad_to_multiple


class Restormer(EncodingNetwork):
    """The network, for images (B, in_channels, H, W) of any H and W, values in [0, 1].

    Args:
        in_channels: 3 colour, 1 gray, 6 dual-pixel (left and right view).
        out_channels: channels of the restored image.
        dim: width of the first level; each level below doubles it.
        num_blocks: transformer blocks of the four levels.
        num_refinement_blocks: blocks after the decoder, at full resolution.
        heads: attention heads of the four levels.
        ffn_expansion_factor: hidden width of the feed-forward parts is int(width * factor).
        bias: convolutions of the blocks carry a bias.
        norm_bias: the "WithBias" layer norm.
        dual_pixel: the dual-pixel defocus form, with a skip from the embedding instead of the input.
    """

    architecture = "restormer"

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        dim: int = 48,
        num_blocks: tuple[int, ...] | list[int] = (4, 6, 6, 8),
        num_refinement_blocks: int = 4,
        heads: tuple[int, ...] | list[int] = (1, 2, 4, 8),
        ffn_expansion_factor: float = 2.66,
        bias: bool = False,
        norm_bias: bool = True,
        dual_pixel: bool = False,
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "dim": dim,
            "num_blocks": list(num_blocks),
            "num_refinement_blocks": num_refinement_blocks,
            "heads": list(heads),
            "ffn_expansion_factor": ffn_expansion_factor,
            "bias": bias,
            "norm_bias": norm_bias,
            "dual_pixel": dual_pixel,
        }
        self.dual_pixel = dual_pixel

        def level(width: int, level_heads: int, count: int) -> nn.Sequential:
            return stage(count, width, level_heads, int(width * ffn_expansion_factor), bias, norm_bias)

        self._add_encoder(in_channels, dim, heads, num_blocks, level)
        self.up4_3 = Upsample(8 * dim)
        self.reduce_chan_level3 = nn.Conv2d(8 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = level(4 * dim, heads[2], num_blocks[2])
        self.up3_2 = Upsample(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = level(2 * dim, heads[1], num_blocks[1])
        self.up2_1 = Upsample(2 * dim)
        # The topmost decoder level keeps the concatenated width, there is no channel reduction.
        self.decoder_level1 = level(2 * dim, heads[0], num_blocks[0])
        self.refinement = level(2 * dim, heads[0], num_refinement_blocks)
        self.skip_conv = nn.Conv2d(dim, 2 * dim, 1, bias=bias) if dual_pixel else None
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    @property
    def in_channels(self) -> int:
        return int(self.hyperparameters["in_channels"])

    @property
    def out_channels(self) -> int:
        return int(self.hyperparameters["out_channels"])

    def forward(self, image: Tensor) -> Tensor:
        """Restore (B, in_channels, H, W); returns (B, out_channels, H, W)."""
        height, width = image.shape[-2:]
        # Features go as soon as nothing needs them: where tiles share maps, many of them wait with theirs.
        x = self.patch_embed(reflect_pad_to_multiple(image, self.size_multiple))
        embedded = None if self.skip_conv is None else x
        x = level1 = self.encoder_level1(x)
        x = level2 = self.encoder_level2(self.down1_2(x))
        x = level3 = self.encoder_level3(self.down2_3(x))
        x = self.latent(self.down3_4(x))
        x = self.reduce_chan_level3(torch.cat((self.up4_3(x), level3), 1))
        del level3
        x = self.decoder_level3(x)
        x = self.reduce_chan_level2(torch.cat((self.up3_2(x), level2), 1))
        del level2
        x = self.decoder_level2(x)
        x = torch.cat((self.up2_1(x), level1), 1)
        del level1
        x = self.decoder_level1(x)
        x = self.refinement(x)
        if self.skip_conv is not None:
            return self.output(x + self.skip_conv(embedded))[..., :height, :width]
        # Cut before the sum: a file's reader sees by it that the output is as large as the image.
        return self.output(x)[..., :height, :width] + image
