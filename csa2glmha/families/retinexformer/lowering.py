"""How the parts of Retinexformer are deployed."""

from __future__ import annotations

from torch import Tensor

from csa2glmha.families.family import Lowering
from csa2glmha.families.retinexformer.readers import LitSpectralGLMHA
from csa2glmha.families.spectral.blocks import NormedFeedForward
from csa2glmha.families.spectral.lowering import DeployedFactored, deployed_feed_forward


class DeployedIGMSA(DeployedFactored):
    """IG-MSA's replacement: the attention sees the values times features of the light."""

    def forward(self, x: Tensor, light: Tensor) -> Tensor:
        return self.factored(x, light)


LOWERING: Lowering = {LitSpectralGLMHA: DeployedIGMSA, NormedFeedForward: deployed_feed_forward}
