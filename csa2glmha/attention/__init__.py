"""Channel attention: the canonical form and the GLMHA layer."""

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.glmha import GLMHA, GLMHAConfig, GuidedAttention

__all__ = ["GLMHA", "ChannelAttention", "GLMHAConfig", "GuidedAttention", "Projection"]
