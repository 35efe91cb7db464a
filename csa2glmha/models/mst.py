"""MST: a U-shaped spectral-wise transformer that reconstructs spectral cubes from CASSI measurements.

Written from the description in Cai et al., "Mask-guided Spectral-wise Transformer for Efficient
Hyperspectral Image Reconstruction", CVPR 2022 (arXiv 2111.07910). Parameter names follow the published
checkpoints, so that those load as they are.

A coded aperture snapshot spectral imager (CASSI) disperses the scene: band i arrives
:data:`DISPERSION` * i columns further right than band 0. The network gets the aperture mask dispersed
the same way, and its attention shifts what it makes of the mask back onto the scene.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.errors import DataError
from csa2glmha.models.base import RestorationModel
from csa2glmha.models.spectral_blocks import SpectralAttention, SpectralUNet, unet_num_blocks

#: Columns between the places where neighbouring bands arrive.
DISPERSION = 2

_LEAKY_SLOPE = 0.1


class MaskGuidance(nn.Module):
    """Mask-guided mechanism: from mask features to one factor for every value of the attention.

    Args:
        channels: C, at level l the number of bands times 2 ** l.
        level: how often the maps were halved.
    """

    def __init__(self, channels: int, level: int) -> None:
        super().__init__()
        self.level = level
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1)
        self.depth_conv = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)

    def forward(self, mask: Tensor, width: int) -> Tensor:
        """Turn dispersed mask features (B, C, H, W') into factors (B, C, H, width) in the scene's place."""
        features = self.conv1(mask)
        gate = torch.sigmoid(self.depth_conv(self.conv2(features)))
        return self._shift_back(features + features * gate, width)

    def _shift_back(self, dispersed: Tensor, width: int) -> Tensor:
        # Each level halves what a column is worth and doubles the channels that share a band, hence 4 ** l.
        # The published form derives the level from the number of rows, which has to be 256 / 2 ** l for that.
        batch, channels, height, _ = dispersed.shape
        shift = torch.arange(channels, device=dispersed.device) * DISPERSION // 4**self.level
        column = shift.view(-1, 1, 1) + torch.arange(width, device=dispersed.device)
        return dispersed.gather(3, column.expand(batch, channels, height, width))


class MSMSA(SpectralAttention):
    """MS-MSA: S-MSA whose values are multiplied by factors made from the mask, on (B, C, H, W).

    The positional embedding is made from the values before that.
    """

    def __init__(self, channels: int, heads: int, level: int) -> None:
        super().__init__(channels, heads)
        self.mm = MaskGuidance(channels, level)

    def mask_attention(self, mask: Tensor, width: int) -> Tensor:
        """The factors (1 or B, C, H, width); they depend on the mask features (1 or B, C, H, W') alone."""
        return self.mm(mask, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        values = self.values(x)
        guided = values * self.mask_attention(mask, x.shape[-1])
        return self.attend(x, guided) + self.pos_emb(values)


class MST(SpectralUNet, RestorationModel):
    """The network, for initial cubes (B, dim, H, W) and dispersed masks (1 or B, dim, H, W + 2 (dim - 1)).

    :mod:`csa2glmha.data.cassi` makes both. Published weights were trained at 256 x 256; H and W may be
    any multiples of ``2 ** (len(num_blocks) - 1)``.

    Args:
        dim: spectral bands, and width of the top level.
        num_blocks: blocks of every level from the top down; the last is the bottleneck. MST-S has 2, 2, 2,
            MST-M 2, 4, 4 and MST-L 4, 7, 5.
    """

    architecture = "mst"
    input_names = ("input", "mask")
    #: Of the published three levels. Inputs are not padded: the mask would no longer fit the scene.
    size_multiple = 4

    def __init__(self, dim: int = 28, num_blocks: tuple[int, ...] | list[int] = (2, 2, 2)) -> None:
        super().__init__(
            dim, num_blocks, lambda channels, level: MSMSA(channels, heads=2**level, level=level), guides=1
        )
        self.hyperparameters = {"dim": dim, "num_blocks": list(num_blocks)}

    @property
    def in_channels(self) -> int:
        return int(self.hyperparameters["dim"])

    @property
    def out_channels(self) -> int:
        return int(self.hyperparameters["dim"])

    def input_shapes(self, height: int, width: int, batch: int = 1) -> tuple[tuple[int, ...], ...]:
        """Shapes of the cube and of the mask, which is one for the whole batch."""
        dim = self.in_channels
        return (batch, dim, height, width), (1, dim, height, self._dispersed(width))

    def forward(self, cube: Tensor, mask: Tensor) -> Tensor:
        """Reconstruct the spectral cube (B, dim, H, W).

        Args:
            cube: initial cube (B, dim, H, W).
            mask: dispersed mask, (1, dim, H, W') for all or (B, dim, H, W') one each.

        Raises:
            DataError: the sizes do not fit each other or the number of levels.
        """
        # Exported graphs keep H and W open, so they cannot compare them.
        if not torch.compiler.is_exporting():
            self._check_sizes(cube, mask)
        x = self.embedding(cube.contiguous(memory_format=torch.channels_last))
        x = self.transform(F.leaky_relu(x, _LEAKY_SLOPE), mask)
        return self.mapping(x) + cube

    def _dispersed(self, width: int) -> int:
        return width + DISPERSION * (self.in_channels - 1)

    def _check_sizes(self, cube: Tensor, mask: Tensor) -> None:
        multiple = 2 ** (len(self.hyperparameters["num_blocks"]) - 1)
        batch, channels, height, width = cube.shape
        if channels != self.in_channels or height % multiple or width % multiple:
            raise DataError(
                f"mst: initial cube of shape {tuple(cube.shape)} does not fit: "
                f"give (B, {self.in_channels}, H, W) with H and W multiples of {multiple}"
            )
        expected = (channels, height, self._dispersed(width))
        if tuple(mask.shape[1:]) != expected or mask.shape[0] not in (1, batch):
            raise DataError(
                f"mst: mask of shape {tuple(mask.shape)} does not fit a cube of shape {tuple(cube.shape)}: "
                f"give {(1, *expected)}, the mask dispersed by {DISPERSION} columns a band"
            )


def hyperparameters_from(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read MST's hyper-parameters from the names and shapes of its parameters."""
    return {"dim": state["embedding.weight"].shape[0], "num_blocks": unet_num_blocks(state)}
