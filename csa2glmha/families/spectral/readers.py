"""How spectral-wise attention is read, the layer in its place, and where feed-forward networks have parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.pointwise import PointwiseGLMHA
from csa2glmha.families.spectral.blocks import GeluFeedForward, SpectralAttention
from csa2glmha.feedforward.form import FeedForwardReader
from csa2glmha.reading.reader import PlainReader

FEED_FORWARD_READER = FeedForwardReader(GeluFeedForward, ("net.0", "net.2"), "net.4")


class SpectralGLMHA(PointwiseGLMHA):
    """In S-MSA's place, on (B, C, H, W): the attention, and the embedding made from all of V.

    Args:
        config: of the attention.
        pos_emb: the positional embedding, taken over as it is.
    """

    def __init__(self, config: GLMHAConfig, pos_emb: nn.Module) -> None:
        super().__init__(config)
        self.pos_emb = pos_emb

    def value_branch(self, values: Tensor) -> Tensor:
        """The positional embedding."""
        embedding: Tensor = self.pos_emb(values)
        return embedding


class FactoredSpectralGLMHA(SpectralGLMHA):
    """Likewise, where the attention sees V times factors that come with the call."""

    def value_factors(self, args: tuple[Any, ...]) -> Tensor:
        """The factors, (1 or B, heads * c, H, W), from the arguments of the call."""
        raise NotImplementedError

    def forward(self, *args: Any) -> Tensor:
        return self.attend(args)


class SpectralReader(PlainReader):
    """S-MSA, no biases but the output's.

    Its attention is softmax(k q^T) v: what the papers call keys are the queries here, and the other way
    round.
    """

    module_type: type[SpectralAttention] = SpectralAttention

    def read(self, module: nn.Module) -> ChannelAttention:
        """The layer in canonical form; its tensors are the module's, detached."""
        assert isinstance(module, SpectralAttention)
        return ChannelAttention(
            heads=module.heads,
            queries=Projection(module.to_k.weight.detach()),
            keys=Projection(module.to_q.weight.detach()),
            values=Projection(module.to_v.weight.detach()),
            temperature=module.rescale.detach().flatten(),
            output=module.proj.weight.detach(),
            output_bias=module.proj.bias.detach(),
            value_branch=True,
        )

    def value_branch(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        """The positional embedding."""
        assert isinstance(module, SpectralAttention)
        return module.pos_emb

    def build(self, module: nn.Module, config: GLMHAConfig) -> nn.Module:
        """An uninitialised replacement, called as the module is, with the module's own ``pos_emb``."""
        assert isinstance(module, SpectralAttention)
        return SpectralGLMHA(config, module.pos_emb)
