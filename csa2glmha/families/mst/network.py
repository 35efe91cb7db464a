"""MST: a U-shaped spectral-wise transformer that reconstructs spectral cubes from CASSI measurements.

Written from the description in Cai et al., "Mask-guided Spectral-wise Transformer for Efficient
Hyperspectral Image Reconstruction", CVPR 2022 (arXiv 2111.07910). Parameter names follow the published
checkpoints, so that those load as they are.

A coded aperture snapshot spectral imager (CASSI) disperses the scene: band i arrives
:data:`~csa2glmha.core.dispersion.DISPERSION` * i columns further right than band 0. The network gets the
aperture mask dispersed the same way, and its attention shifts what it makes of the mask back onto the scene.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.core.dispersion import DISPERSION, dispersed_width
from csa2glmha.core.errors import DataError
from csa2glmha.families.spectral.blocks import SpectralAttention, SpectralUNet
from csa2glmha.networks import RestorationModel

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


class BakedGuidance(nn.Module):
    """What :class:`MaskGuidance` gives for one mask, as a constant; see :func:`bake_mask`.

    Args:
        channels: C, at level l the number of bands times 2 ** l.
        height, width: of the scene at that level.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.factors: Tensor
        self.register_buffer("factors", torch.ones(1, channels, height, width))

    def forward(self, mask: Tensor | None, width: int) -> Tensor:
        """The factors (1, C, H, W), whatever the arguments."""
        return self.factors


class MSMSA(SpectralAttention):
    """MS-MSA: S-MSA whose values are multiplied by factors made from the mask, on (B, C, H, W).

    The positional embedding is made from the values before that.

    Args:
        channels: C.
        heads: they split the channels evenly.
        level: how often the maps were halved.
        mask_size: height and width, at the top level, of the mask the factors are constants of; None makes
            them of the mask features of every call.
    """

    def __init__(
        self, channels: int, heads: int, level: int, mask_size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(channels, heads)
        self.mm: nn.Module
        if mask_size is None:
            self.mm = MaskGuidance(channels, level)
        else:
            self.mm = BakedGuidance(channels, *(side // 2**level for side in mask_size))

    def mask_attention(self, mask: Tensor | None, width: int) -> Tensor:
        """The factors (1 or B, C, H, width); they depend on the mask features (1 or B, C, H, W') alone."""
        return self.mm(mask, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        values = self.values(x)
        guided = values * self.mask_attention(mask, x.shape[-1])
        return self.attend(x, guided) + self.pos_emb(values)


class MST(SpectralUNet, RestorationModel):
    """The network, for initial cubes (B, dim, H, W) and dispersed masks (1 or B, dim, H, W + 2 (dim - 1)).

    :mod:`csa2glmha.data.inputs.cassi` makes both. Published weights were trained at 256 x 256; H and W may be
    any multiples of ``2 ** (len(num_blocks) - 1)``.

    Args:
        dim: spectral bands, and width of the top level.
        num_blocks: blocks of every level from the top down; the last is the bottleneck. MST-S has 2, 2, 2,
            MST-M 2, 4, 4 and MST-L 4, 7, 5.
        mask_size: height and width of the one mask that the network holds for. Its influence is then stored
            as constants, and the cube is the only input; :func:`bake_mask` makes such networks.
    """

    architecture = "mst"
    inputs = "cassi"
    input_names: tuple[str, ...] = ("input", "mask")

    def __init__(
        self,
        dim: int = 28,
        num_blocks: tuple[int, ...] | list[int] = (2, 2, 2),
        mask_size: tuple[int, int] | list[int] | None = None,
    ) -> None:
        fixed = None if mask_size is None else (int(mask_size[0]), int(mask_size[1]))
        super().__init__(
            dim,
            num_blocks,
            lambda channels, level: MSMSA(channels, 2**level, level, fixed),
            guides=1 if fixed is None else 0,
        )
        self.hyperparameters = {"dim": dim, "num_blocks": list(num_blocks)}
        # Inputs are not padded: the mask would no longer fit the scene.
        self.size_multiple = 2 ** (len(num_blocks) - 1)
        if fixed is not None:
            self._fix_size(fixed)

    def _fix_size(self, mask_size: tuple[int, int]) -> None:
        self.hyperparameters["mask_size"] = list(mask_size)
        self.fixed_size = mask_size
        self.input_names = ("input",)

    @property
    def in_channels(self) -> int:
        return int(self.hyperparameters["dim"])

    @property
    def out_channels(self) -> int:
        return int(self.hyperparameters["dim"])

    def input_shapes(self, height: int, width: int, batch: int = 1) -> tuple[tuple[int, ...], ...]:
        """Shapes of the cube and, if it is an input, of the mask, which is one for the whole batch."""
        dim = self.in_channels
        cube = (batch, dim, height, width)
        return (cube,) if self.fixed_size else (cube, (1, dim, height, dispersed_width(width, dim)))

    def forward(self, cube: Tensor, mask: Tensor | None = None) -> Tensor:
        """Reconstruct the spectral cube (B, dim, H, W).

        Args:
            cube: initial cube (B, dim, H, W).
            mask: dispersed mask, (1, dim, H, W') for all or (B, dim, H, W') one each; None if it is baked in.

        Raises:
            DataError: the sizes do not fit each other, the number of levels or the mask that is baked in.
        """
        # Exported graphs keep H and W open, so they cannot compare them.
        if not torch.compiler.is_exporting():
            self._check_sizes(cube, mask)
        x = self.embedding(cube.contiguous(memory_format=torch.channels_last))
        x = self.transform(F.leaky_relu(x, _LEAKY_SLOPE), *(() if mask is None else (mask,)))
        return self.mapping(x) + cube

    def _check_sizes(self, cube: Tensor, mask: Tensor | None) -> None:
        if self.fixed_size is not None:
            self._check_fixed(cube, mask)
            return
        multiple = self.size_multiple
        batch, channels, height, width = cube.shape
        if channels != self.in_channels or height % multiple or width % multiple:
            raise DataError(
                f"mst: initial cube of shape {tuple(cube.shape)} does not fit: "
                f"give (B, {self.in_channels}, H, W) with H and W multiples of {multiple}"
            )
        expected = (channels, height, dispersed_width(width, channels))
        if mask is None:
            raise DataError(f"mst: no mask is given: give one of {(1, *expected)}, or bake one in")
        if tuple(mask.shape[1:]) != expected or mask.shape[0] not in (1, batch):
            raise DataError(
                f"mst: mask of shape {tuple(mask.shape)} does not fit a cube of shape {tuple(cube.shape)}: "
                f"give {(1, *expected)}, the mask dispersed by {DISPERSION} columns a band"
            )

    def _check_fixed(self, cube: Tensor, mask: Tensor | None) -> None:
        expected = (self.in_channels, *(self.fixed_size or ()))
        if tuple(cube.shape[1:]) != expected:
            raise DataError(
                f"mst: initial cube of shape {tuple(cube.shape)} does not fit: the mask that is baked in "
                f"holds for (B, {', '.join(map(str, expected))}) only; convert with a mask of that size, "
                "or without"
            )
        if mask is not None:
            raise DataError("mst: a mask is given, but this network has one baked in: leave it out")


@torch.no_grad()
def bake_mask(model: MST, mask: Tensor) -> MST:
    """The same network for one mask, whose whole branch is evaluated now and kept as constants.

    Args:
        model: without a mask baked in, converted or not; it is not changed.
        mask: dispersed mask (1, dim, H, W'), of the size of every scene to come.

    Returns:
        A network of initial cubes (B, dim, H, W) alone, in eval mode, with copies of the weights.

    Raises:
        DataError: the mask's shape does not fit the network.
    """
    width = mask.shape[-1] - DISPERSION * (model.in_channels - 1)
    multiple = model.size_multiple
    if (
        mask.ndim != 4
        or tuple(mask.shape[:2]) != (1, model.in_channels)
        or width < 1
        or width % multiple
        or mask.shape[2] % multiple
    ):
        raise DataError(
            f"mst: mask of shape {tuple(mask.shape)} cannot be baked in: give (1, {model.in_channels}, H, "
            f"W + {DISPERSION * (model.in_channels - 1)}), one mask dispersed by {DISPERSION} columns a "
            f"band, with H and W multiples of {multiple}"
        )
    baked = copy.deepcopy(model).eval()
    features = [mask.to(next(model.parameters()))]
    for layer in baked.encoder_layers:
        assert isinstance(layer, nn.ModuleList)
        features.append(layer[2](features[-1]))
        del layer[2]
    for attention in list(baked.modules()):
        guidance = getattr(attention, "mm", None)
        if isinstance(guidance, MaskGuidance):
            level = guidance.level
            constant = BakedGuidance(guidance.conv1.out_channels, mask.shape[2] >> level, width >> level)
            constant.factors = guidance(features[level], width >> level)
            attention.mm = constant
    baked._fix_size((mask.shape[2], width))
    return baked


def unbake_mask(baked: MST, original: MST) -> MST:
    """The inverse of :func:`bake_mask`, with the mask branch of the network it was made from.

    Args:
        baked: with a mask baked in, converted or not; it is not changed.
        original: the network whose mask branch it had; not converted, not changed.

    Returns:
        A network of initial cube and mask, in eval mode.
    """
    model = copy.deepcopy(baked).eval()
    for layer, source in zip(model.encoder_layers, original.encoder_layers, strict=True):
        assert isinstance(layer, nn.ModuleList) and isinstance(source, nn.ModuleList)
        layer.append(copy.deepcopy(source[2]))
    for name, attention in list(model.named_modules()):
        if isinstance(getattr(attention, "mm", None), BakedGuidance):
            attention.mm = copy.deepcopy(original.get_submodule(f"{name}.mm"))
    del model.hyperparameters["mask_size"]
    model.fixed_size, model.input_names = None, MST.input_names
    return model


def freeze_mask_branch(model: MST) -> None:
    """Keep training away from what makes the factors of the mask, so that the mask can be baked in."""
    branch = [module for module in model.modules() if isinstance(module, MaskGuidance)]
    downsamples = [layer[2] for layer in model.encoder_layers if isinstance(layer, nn.ModuleList)]
    for module in (*branch, *downsamples):
        module.requires_grad_(False)
