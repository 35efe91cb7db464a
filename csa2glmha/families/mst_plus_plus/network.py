"""MST++: a cascade of U-shaped spectral-wise transformers that turns RGB images into spectra.

Written from the description in Cai et al., "MST++: Multi-stage Spectral-wise Transformer for Efficient
Spectral Reconstruction", CVPRW 2022 (arXiv 2204.07908). Parameter names follow the published checkpoints,
so that those load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csa2glmha.families.spectral.blocks import SpectralAttention, SpectralUNet
from csa2glmha.networks import RestorationModel, reflect_pad_to_multiple


class SMSA(SpectralAttention):
    """S-MSA of MST++: self-attention across the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        values = self.values(x)
        return self.attend(x, values) + self.pos_emb(values)


class SpectralStage(SpectralUNet):
    """One stage of the cascade, on (B, dim, H, W) with H and W multiples of 2 ** (len(num_blocks) - 1)."""

    def __init__(self, dim: int, num_blocks: tuple[int, ...] | list[int]) -> None:
        super().__init__(dim, num_blocks, lambda channels, level: SMSA(channels, heads=2**level))

    def forward(self, x: Tensor) -> Tensor:
        return self.mapping(self.transform(self.embedding(x))) + x


class MSTPlusPlus(RestorationModel):
    """The network, for images (B, in_channels, H, W) of any H and W, values in [0, 1].

    Args:
        in_channels: channels of the image, 3 for RGB.
        n_feat: bands of the spectra, and width of the stages: the network adds the one to the other.
        stage: U-shaped stages in the cascade.
        num_blocks: blocks of every level of a stage from the top down; the published ones have three.

    Raises:
        ValueError: there are more levels than the padding to a multiple of 8 allows.
    """

    architecture = "mst_plus_plus"
    inputs = "rgb-to-spectra"

    def __init__(
        self,
        in_channels: int = 3,
        n_feat: int = 31,
        stage: int = 3,
        num_blocks: tuple[int, ...] | list[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        if 2 ** (len(num_blocks) - 1) > self.size_multiple:
            raise ValueError(
                f"num_blocks {list(num_blocks)} has {len(num_blocks)} levels, at most 4 are possible"
            )
        self.hyperparameters = {
            "in_channels": in_channels,
            "n_feat": n_feat,
            "stage": stage,
            "num_blocks": list(num_blocks),
        }
        self.conv_in = nn.Conv2d(in_channels, n_feat, 3, padding=1, bias=False)
        self.body = nn.Sequential(*(SpectralStage(n_feat, num_blocks) for _ in range(stage)))
        self.conv_out = nn.Conv2d(n_feat, n_feat, 3, padding=1, bias=False)

    @property
    def in_channels(self) -> int:
        return int(self.hyperparameters["in_channels"])

    @property
    def out_channels(self) -> int:
        return int(self.hyperparameters["n_feat"])

    def forward(self, image: Tensor) -> Tensor:
        """Reconstruct spectra (B, n_feat, H, W) from (B, in_channels, H, W)."""
        height, width = image.shape[-2:]
        image = reflect_pad_to_multiple(image, self.size_multiple)
        x = self.conv_in(image.contiguous(memory_format=torch.channels_last))
        x = self.conv_out(self.body(x)) + x
        return x[..., :height, :width]
