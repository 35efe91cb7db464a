"""How the parts of MST++ are deployed."""

from __future__ import annotations

from torch import Tensor, nn

from csa2glmha.export.lowering.folding import pointwise
from csa2glmha.families.family import Lowering
from csa2glmha.families.spectral.blocks import NormedFeedForward
from csa2glmha.families.spectral.lowering import (
    DeployedSpectral,
    blocks_matrix,
    deployed_feed_forward,
    values_matrix,
)
from csa2glmha.families.spectral.readers import SpectralGLMHA


class DeployedSMSA(DeployedSpectral):
    """S-MSA's replacement: the projection of the attention's values is folded as the output's is.

    So the attention reads the input itself, and the values for the positional embedding are its alone.
    """

    def __init__(self, layer: SpectralGLMHA) -> None:
        super().__init__(layer)
        matrix = values_matrix(layer.values)
        if layer.reduce_values is not None:
            matrix = blocks_matrix(layer.reduce_values) @ matrix
        self.generate = nn.Parameter(matrix.detach().clone())
        # Reading the input costs C^2 a pixel, generating maps of heads * rank_v channels and mixing them
        # twice that for each.
        self.direct = 2 * matrix.shape[0] >= matrix.shape[1]
        if not self.direct:
            self.low_rank = pointwise(matrix)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.weights(x)
        if self.direct:
            attended = self.mixed(weights @ self.generate, x, self.config.channels, x)
        else:
            attended = self.mixed(weights, self.low_rank(x), self.generate.shape[0], x)
        return attended + self.narrowed(self.pos_emb(self.values(x)))


LOWERING: Lowering = {SpectralGLMHA: DeployedSMSA, NormedFeedForward: deployed_feed_forward}
