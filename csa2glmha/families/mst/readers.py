"""How the attention of MST, MS-MSA, is read, and the layer that takes its place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.families.mst.network import MSMSA
from csa2glmha.families.spectral.readers import FactoredSpectralGLMHA, SpectralReader


class MaskedSpectralGLMHA(FactoredSpectralGLMHA):
    """In MS-MSA's place: the attention sees V times the factors made from the mask.

    Args:
        config: of the attention.
        pos_emb: the positional embedding, taken over as it is.
        mm: makes the factors of mask features, or holds them; likewise.
    """

    def __init__(self, config: GLMHAConfig, pos_emb: nn.Module, mm: nn.Module) -> None:
        super().__init__(config, pos_emb)
        self.mm = mm

    def value_factors(self, args: tuple[Any, ...]) -> Tensor:
        """The mask's, (1 or B, heads * c, H, W)."""
        x, *mask = args
        factors: Tensor = self.mm(mask[0] if mask else None, x.shape[-1])
        return factors


class MSMSAReader(SpectralReader):
    """MS-MSA: as S-MSA, with V multiplied by factors before the attention."""

    module_type = MSMSA

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """The factors (1 or B, C, H, W)."""
        assert isinstance(module, MSMSA)
        x, *mask = args
        return module.mask_attention(mask[0] if mask else None, x.shape[-1])

    def build(self, module: nn.Module, config: GLMHAConfig) -> MaskedSpectralGLMHA:
        """An uninitialised replacement, called as the module is, with its own ``pos_emb`` and ``mm``."""
        assert isinstance(module, MSMSA)
        return MaskedSpectralGLMHA(config, module.pos_emb, module.mm)
