"""Adapters of S-MSA (MST++) and MS-MSA (MST), and the layers that take their place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.glmha import GLMHAConfig
from csa2glmha.attention.pointwise import PointwiseGLMHA
from csa2glmha.families.spectral.blocks import SpectralAttention
from csa2glmha.families.spectral.mst import MSMSA
from csa2glmha.families.spectral.mst_plus_plus import SMSA


class SpectralGLMHA(PointwiseGLMHA):
    """In S-MSA's place, on (B, C, H, W): the attention, and the embedding made from all of V.

    Args:
        config: of the attention.
        pos_emb: the positional embedding, taken over as it is.
    """

    def __init__(self, config: GLMHAConfig, pos_emb: nn.Module) -> None:
        super().__init__(config)
        self.pos_emb = pos_emb

    def forward(self, x: Tensor) -> Tensor:
        values = self.values(x)
        return self.attend(x, values) + self.pos_emb(values)


class MaskedSpectralGLMHA(SpectralGLMHA):
    """In MS-MSA's place: the attention sees V times the factors made from the mask.

    Args:
        config: of the attention.
        pos_emb: the positional embedding, taken over as it is.
        mm: makes the factors of mask features, or holds them; likewise.
    """

    def __init__(self, config: GLMHAConfig, pos_emb: nn.Module, mm: nn.Module) -> None:
        super().__init__(config, pos_emb)
        self.mm = mm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        values = self.values(x)
        return self.attend(x, values * self.mm(mask, x.shape[-1])) + self.pos_emb(values)


class SMSAAdapter:
    """S-MSA: rows k, columns q, no biases but the output's."""

    module_type: type[SpectralAttention] = SMSA

    def read(self, module: nn.Module) -> ChannelAttention:
        """The layer in canonical form; its tensors are the module's, detached."""
        assert isinstance(module, SpectralAttention)
        return ChannelAttention(
            heads=module.heads,
            rows=Projection(module.to_k.weight.detach()),
            columns=Projection(module.to_q.weight.detach()),
            values=Projection(module.to_v.weight.detach()),
            temperature=module.rescale.detach().flatten(),
            output=module.proj.weight.detach(),
            output_bias=module.proj.bias.detach(),
            embedded=True,
        )

    def attention_input(self, args: tuple[Any, ...]) -> Tensor:
        """The (B, C, H, W) input of the projections, from the arguments of the module's call."""
        return args[0]

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """None: the attention sees V as it is."""
        return None

    def build(self, module: nn.Module, config: GLMHAConfig) -> SpectralGLMHA:
        """An uninitialised replacement, called as the module is, with the module's own ``pos_emb``."""
        assert isinstance(module, SMSA)
        return SpectralGLMHA(config, module.pos_emb)


class MSMSAAdapter(SMSAAdapter):
    """MS-MSA: as S-MSA, with V multiplied by factors before the attention."""

    module_type: type[SpectralAttention] = MSMSA

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """The factors (1 or B, C, H, W)."""
        assert isinstance(module, MSMSA)
        x, *mask = args
        return module.mask_attention(mask[0] if mask else None, x.shape[-1])

    def build(self, module: nn.Module, config: GLMHAConfig) -> MaskedSpectralGLMHA:
        """An uninitialised replacement, called as the module is, with its own ``pos_emb`` and ``mm``."""
        assert isinstance(module, MSMSA)
        return MaskedSpectralGLMHA(config, module.pos_emb, module.mm)
