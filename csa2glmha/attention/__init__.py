"""Channel attention: the canonical form, the families' adapters, and the GLMHA layer."""

from csa2glmha.attention.canonical import ChannelAttention, Projection
from csa2glmha.attention.glmha import GLMHA, GLMHAConfig, GuidedAttention
from csa2glmha.attention.layers import (
    AttentionLayer,
    attention_layers,
    glmha_layers,
    replace_layers,
)
from csa2glmha.attention.ranks import Ranks, plan_layers

__all__ = [
    "GLMHA",
    "AttentionLayer",
    "ChannelAttention",
    "GLMHAConfig",
    "GuidedAttention",
    "Projection",
    "Ranks",
    "attention_layers",
    "glmha_layers",
    "plan_layers",
    "replace_layers",
]
