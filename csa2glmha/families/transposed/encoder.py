"""The way down that networks of transposed attention share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from csa2glmha.families.transposed.blocks import Downsample, PatchEmbedding
from csa2glmha.networks import RestorationModel


class EncodingNetwork(RestorationModel):
    """A network with an embedding, three levels on the way down and the lowest one, under published names."""

    def _add_encoder(
        self,
        in_channels: int,
        dim: int,
        heads: Sequence[int],
        num_blocks: Sequence[int],
        level: Callable[[int, int, int], nn.Sequential],
    ) -> None:
        """Make these parts.

        Args:
            in_channels: of the image.
            dim: width of the first level; each level below doubles it.
            heads, num_blocks: of the four levels.
            level: makes one from its width, heads and number of blocks.
        """
        self.patch_embed = PatchEmbedding(in_channels, dim)
        self.encoder_level1 = level(dim, heads[0], num_blocks[0])
        self.down1_2 = Downsample(dim)
        self.encoder_level2 = level(2 * dim, heads[1], num_blocks[1])
        self.down2_3 = Downsample(2 * dim)
        self.encoder_level3 = level(4 * dim, heads[2], num_blocks[2])
        self.down3_4 = Downsample(4 * dim)
        self.latent = level(8 * dim, heads[3], num_blocks[3])
