"""PromptIR: a Restormer whose decoder sees prompts, images that are mixed by what the features are like.

Written from the description in Potlapalli et al., "PromptIR: Prompting for All-in-One Blind Image
Restoration", NeurIPS 2023 (arXiv 2306.13090). Parameter names follow the published checkpoints, so that
those load as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.attention.core import Moments, Region, everywhere
from csa2glmha.families.resizing import ResizeLike
from csa2glmha.families.transposed.blocks import Upsample, stage
from csa2glmha.families.transposed.encoder import EncodingNetwork
from csa2glmha.networks import reflect_pad_to_multiple


class Prompt(nn.Module):
    """From features (B, features, H, W) to the prompt for them (B, channels, H, W).

    The features' means over all pixels say how learned images are mixed; the mixture is resized. In the
    steps of :mod:`csa2glmha.attention.core`, so that tiles of an image get parts of one prompt.

    Args:
        length: how many images there are to mix.
        channels: of the images.
        size: height and width of the images.
        features: channels of the features.
    """

    def __init__(self, length: int, channels: int, size: int, features: int) -> None:
        super().__init__()
        self.prompt_param = nn.Parameter(torch.rand(1, length, channels, size, size))
        self.linear_layer = nn.Linear(features, length)
        self.resize = ResizeLike()
        self.conv3x3 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.apply_matrix((x,), self.matrix(self.moments_of((x,))))

    def moments_of(self, args: tuple[Any, ...], region: Region = everywhere) -> Moments:
        """The features' means over the pixels in the region, (B, features)."""
        return (region(args[0]).mean((2, 3)),)

    def matrix(self, moments: Moments) -> Tensor:
        """The mixture for these means, (B, channels, size, size)."""
        weights = self.linear_layer(moments[0]).softmax(1)
        images = self.prompt_param[0]
        return (weights @ images.flatten(1)).view(-1, *images.shape[1:])

    def apply_matrix(self, args: tuple[Any, ...], matrix: Tensor) -> Tensor:
        """The prompt of the features' size, from the mixture."""
        prompt: Tensor = self.conv3x3(self.resize(matrix, args[0]))
        return prompt


class PromptIR(EncodingNetwork):
    """The network, for images (B, in_channels, H, W) of any H and W, values in [0, 1].

    Args:
        in_channels: of the image.
        out_channels: channels of the restored image, the same number.
        dim: width of the first level; each level below doubles it.
        num_blocks: transformer blocks of the four levels.
        num_refinement_blocks: blocks after the decoder, at full resolution.
        heads: attention heads of the four levels; blocks behind a prompt have those of the third.
        ffn_expansion_factor: hidden width of the feed-forward parts is int(width * factor).
        bias: convolutions of the blocks carry a bias.
        norm_bias: the "WithBias" layer norm.
        prompt_length: images that every prompt is mixed from.
        prompt_channels, prompt_sizes: of the three prompts, the one for the widest maps first.
    """

    architecture = "promptir"

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
        prompt_length: int = 5,
        prompt_channels: tuple[int, ...] | list[int] = (64, 128, 320),
        prompt_sizes: tuple[int, ...] | list[int] = (64, 32, 16),
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
            "prompt_length": prompt_length,
            "prompt_channels": list(prompt_channels),
            "prompt_sizes": list(prompt_sizes),
        }

        def level(width: int, level_heads: int, count: int) -> nn.Sequential:
            return stage(count, width, level_heads, int(width * ffn_expansion_factor), bias, norm_bias)

        self._add_encoder(in_channels, dim, heads, num_blocks, level)
        self._add_decoder(level)
        self.refinement = level(2 * dim, heads[0], num_refinement_blocks)
        self.output = nn.Conv2d(2 * dim, out_channels, 3, padding=1, bias=bias)

    def _add_decoder(self, level: Callable[[int, int, int], nn.Sequential]) -> None:
        """The way up; ``level`` makes so many blocks of a width and a number of heads."""
        values = self.hyperparameters
        dim, bias, heads, num_blocks = (values[key] for key in ("dim", "bias", "heads", "num_blocks"))

        def prompted(index: int, features: int, width: int) -> tuple[Prompt, nn.Module, nn.Conv2d]:
            """A prompt, the block that sees it beside the features, and what leaves ``width`` channels."""
            channels, size = values["prompt_channels"][index], values["prompt_sizes"][index]
            (block,) = level(features + channels, heads[2], 1)
            reduce = nn.Conv2d(features + channels, width, 1, bias=bias)
            return Prompt(values["prompt_length"], channels, size, features), block, reduce

        # Behind the deepest prompt half the channels are left: the way up begins narrower than Restormer's.
        self.prompt3, self.noise_level3, self.reduce_noise_level3 = prompted(2, 8 * dim, 4 * dim)
        self.up4_3 = Upsample(4 * dim)
        self.reduce_chan_level3 = nn.Conv2d(6 * dim, 4 * dim, 1, bias=bias)
        self.decoder_level3 = level(4 * dim, heads[2], num_blocks[2])
        self.prompt2, self.noise_level2, self.reduce_noise_level2 = prompted(1, 4 * dim, 4 * dim)
        self.up3_2 = Upsample(4 * dim)
        self.reduce_chan_level2 = nn.Conv2d(4 * dim, 2 * dim, 1, bias=bias)
        self.decoder_level2 = level(2 * dim, heads[1], num_blocks[1])
        self.prompt1, self.noise_level1, self.reduce_noise_level1 = prompted(0, 2 * dim, 2 * dim)
        self.up2_1 = Upsample(2 * dim)
        self.decoder_level1 = level(2 * dim, heads[0], num_blocks[0])

    @property
    def in_channels(self) -> int:
        return int(self.hyperparameters["in_channels"])

    @property
    def out_channels(self) -> int:
        return int(self.hyperparameters["out_channels"])

    def forward(self, image: Tensor) -> Tensor:
        """Restore (B, in_channels, H, W); returns (B, out_channels, H, W)."""
        height, width = image.shape[-2:]
        padded = reflect_pad_to_multiple(image, self.size_multiple)
        # Features go as soon as nothing needs them: where tiles share maps, many of them wait with theirs.
        x = level1 = self.encoder_level1(self.patch_embed(padded))
        del padded
        x = level2 = self.encoder_level2(self.down1_2(x))
        x = level3 = self.encoder_level3(self.down2_3(x))
        x = self.latent(self.down3_4(x))
        x = self.reduce_noise_level3(self.noise_level3(torch.cat((x, self.prompt3(x)), 1)))
        x = self.reduce_chan_level3(torch.cat((self.up4_3(x), level3), 1))
        del level3
        x = self.decoder_level3(x)
        x = self.reduce_noise_level2(self.noise_level2(torch.cat((x, self.prompt2(x)), 1)))
        x = self.reduce_chan_level2(torch.cat((self.up3_2(x), level2), 1))
        del level2
        x = self.decoder_level2(x)
        x = self.reduce_noise_level1(self.noise_level1(torch.cat((x, self.prompt1(x)), 1)))
        x = torch.cat((self.up2_1(x), level1), 1)
        del level1
        x = self.refinement(self.decoder_level1(x))
        # Cut before the sum: a file's reader sees by it that the output is as large as the image.
        return self.output(x)[..., :height, :width] + image
