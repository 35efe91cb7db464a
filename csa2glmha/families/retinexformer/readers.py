"""How the attention of Retinexformer, IG-MSA, is read, and the layer that takes its place."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.families.retinexformer.network import IGMSA
from csa2glmha.families.spectral.readers import FactoredSpectralGLMHA, SpectralReader


class LitSpectralGLMHA(FactoredSpectralGLMHA):
    """In IG-MSA's place: the attention sees V times features of the light, the second argument."""

    def value_factors(self, args: tuple[Any, ...]) -> Tensor:
        """The features, (B, heads * c, H, W)."""
        light: Tensor = args[1]
        return light


class IGMSAReader(SpectralReader):
    """IG-MSA: as S-MSA, with V multiplied by the second argument before the attention."""

    module_type = IGMSA

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """The features of the light, (B, C, H, W)."""
        light: Tensor = args[1]
        return light

    def build(self, module: nn.Module, config: GLMHAConfig) -> LitSpectralGLMHA:
        """An uninitialised replacement, called as the module is, with its own ``pos_emb``."""
        assert isinstance(module, IGMSA)
        return LitSpectralGLMHA(config, module.pos_emb)
