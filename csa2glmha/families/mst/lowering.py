"""How the parts of MST are deployed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from csa2glmha.core.dispersion import DISPERSION
from csa2glmha.export.lowering.primitives import shift_back
from csa2glmha.families.family import Lowering
from csa2glmha.families.mst.network import MaskGuidance
from csa2glmha.families.mst.readers import MaskedSpectralGLMHA
from csa2glmha.families.spectral.blocks import NormedFeedForward
from csa2glmha.families.spectral.lowering import DeployedFactored, deployed_feed_forward


class DeployedMSMSA(DeployedFactored):
    """MS-MSA's replacement: the attention sees the values times the mask's factors."""

    def __init__(self, layer: MaskedSpectralGLMHA) -> None:
        super().__init__(layer)
        self.mm = DeployedMaskGuidance(layer.mm) if isinstance(layer.mm, MaskGuidance) else layer.mm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.factored(x, self.mm(mask, x))


class DeployedMaskGuidance(nn.Module):
    """As the original, but the width comes from a map."""

    def __init__(self, guidance: MaskGuidance) -> None:
        super().__init__()
        self.conv1, self.conv2 = guidance.conv1, guidance.conv2
        self.depth_conv = guidance.depth_conv
        self.shifts: Tensor
        channels = guidance.conv1.out_channels
        self.register_buffer("shifts", torch.arange(channels) * DISPERSION // 4**guidance.level)

    def forward(self, mask: Tensor, like: Tensor) -> Tensor:
        features = self.conv1(mask)
        gate = torch.sigmoid(self.depth_conv(self.conv2(features)))
        return shift_back(features + features * gate, self.shifts, like)


LOWERING: Lowering = {MaskedSpectralGLMHA: DeployedMSMSA, NormedFeedForward: deployed_feed_forward}
