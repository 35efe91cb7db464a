"""Channel attention: the canonical form and the GLMHA layer."""

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.glmha import GLMHA
from csa2glmha.attention.guided import GuidedAttention

__all__ = ["GLMHA", "ChannelAttention", "GLMHAConfig", "GuidedAttention", "Projection"]
