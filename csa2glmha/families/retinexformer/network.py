"""Retinexformer: lights up a dark image, and restores what that brings out, led by the light.

Written from the description in Cai et al., "Retinexformer: One-stage Retinex-based Transformer for Low-light
Image Enhancement", ICCV 2023 (arXiv 2303.06705). Parameter names follow the published checkpoints, so that
those load as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csa2glmha.families.spectral.blocks import SpectralAttention, SpectralUNet
from csa2glmha.networks import RestorationModel, reflect_pad_to_multiple


class IlluminationEstimator(nn.Module):
    """From an image (B, in_channels, H, W) to features of its light, and what to light it up by.

    Args:
        in_channels: of the image. Its mean over the channels is looked at, too.
        n_feat: channels of the features, a multiple of ``in_channels + 1``.
    """

    def __init__(self, in_channels: int, n_feat: int) -> None:
        super().__init__()
        seen = in_channels + 1
        self.conv1 = nn.Conv2d(seen, n_feat, 1)
        self.depth_conv = nn.Conv2d(n_feat, n_feat, 5, padding=2, groups=seen)
        self.conv2 = nn.Conv2d(n_feat, in_channels, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, n_feat, H, W) and factors (B, in_channels, H, W), less one."""
        seen = torch.cat((image, image.mean(1, keepdim=True)), 1)
        features = self.depth_conv(self.conv1(seen))
        return features, self.conv2(features)


class IGMSA(SpectralAttention):
    """IG-MSA: S-MSA whose values are multiplied by features of the light, on (B, C, H, W).

    The positional embedding is made from the values before that.
    """

    def forward(self, x: Tensor, light: Tensor) -> Tensor:
        values = self.values(x)
        return self.attend(x, values * light) + self.pos_emb(values)


class Denoiser(SpectralUNet):
    """Restores a lit image (B, in_channels, H, W), features of its light going down beside."""

    def __init__(self, in_channels: int, n_feat: int, num_blocks: tuple[int, ...] | list[int]) -> None:
        super().__init__(
            n_feat,
            num_blocks,
            lambda channels, level: IGMSA(channels, heads=2**level),
            guides=1,
            image_channels=in_channels,
        )

    def forward(self, image: Tensor, light: Tensor) -> Tensor:
        return self.mapping(self.transform(self.embedding(image), light)) + image


class RetinexStage(nn.Module):
    """One stage: the image is lit up, and restored."""

    def __init__(self, in_channels: int, n_feat: int, num_blocks: tuple[int, ...] | list[int]) -> None:
        super().__init__()
        self.estimator = IlluminationEstimator(in_channels, n_feat)
        self.denoiser = Denoiser(in_channels, n_feat, num_blocks)

    def forward(self, image: Tensor) -> Tensor:
        light, factors = self.estimator(image)
        return self.denoiser(image * factors + image, light)


class Retinexformer(RestorationModel):
    """The network, for images (B, in_channels, H, W) of any H and W, values in [0, 1].

    Args:
        in_channels: of the image, 3 for RGB, and of the restored image.
        n_feat: width of the top level; each level below doubles it. A multiple of ``in_channels + 1``.
        stage: how many stages follow each other; published networks have one.
        num_blocks: blocks of every level from the top down; published networks have three levels.
    """

    architecture = "retinexformer"

    def __init__(
        self,
        in_channels: int = 3,
        n_feat: int = 40,
        stage: int = 1,
        num_blocks: tuple[int, ...] | list[int] = (1, 2, 2),
    ) -> None:
        super().__init__()
        self.hyperparameters = {
            "in_channels": in_channels,
            "n_feat": n_feat,
            "stage": stage,
            "num_blocks": list(num_blocks),
        }
        self.size_multiple = 2 ** (len(num_blocks) - 1)
        self.body = nn.Sequential(*(RetinexStage(in_channels, n_feat, num_blocks) for _ in range(stage)))

    @property
    def in_channels(self) -> int:
        return int(self.hyperparameters["in_channels"])

    @property
    def out_channels(self) -> int:
        return self.in_channels

    def forward(self, image: Tensor) -> Tensor:
        """Restore (B, in_channels, H, W); the result has the same shape."""
        height, width = image.shape[-2:]
        image = reflect_pad_to_multiple(image, self.size_multiple)
        x = self.body(image.contiguous(memory_format=torch.channels_last))
        return x[..., :height, :width]
