"""Hyper-parameters of encoder-decoders of transposed attention, and how they are read from weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from csa2glmha.families.hyperparameters import Blocks, Heads, Hyperparameters, Width, expansion_factor

LEVELS = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")


class TransposedHyperparameters(Hyperparameters):
    """What all of them have: four levels, each twice as wide as the one above, and a refinement."""

    in_channels: Width
    out_channels: Width
    dim: Width
    num_blocks: list[Blocks] = Field(min_length=4, max_length=4)
    num_refinement_blocks: Annotated[int, Field(ge=0)]
    heads: list[Heads] = Field(min_length=4, max_length=4)
    ffn_expansion_factor: Annotated[float, Field(gt=0, le=2**16)]
    bias: bool
    norm_bias: bool

    @property
    def blocks(self) -> int:
        return sum(self.num_blocks) + self.num_refinement_blocks

    def model_post_init(self, context: Any) -> None:
        for level, heads in enumerate(self.heads):
            if self.dim * 2**level % heads:
                raise ValueError(f"heads: {heads} do not divide {self.dim * 2**level} channels evenly")
        # The topmost decoder level is twice as wide, with the heads of the first.
        if int(self.dim * self.ffn_expansion_factor) < 1:
            raise ValueError("ffn_expansion_factor: leaves no hidden channel")


def levels_from(state: Mapping[str, Tensor], beside: Mapping[int, int] | None = None) -> dict[str, Any]:
    """Read the fields of :class:`TransposedHyperparameters` from names and shapes of weights.

    Args:
        state: the weights.
        beside: hidden channels of feed-forward networks outside of the levels, by their width.
    """
    blocks: dict[str, int] = {}
    for key in state:
        match = re.match(r"(encoder_level[123]|latent|refinement)\.(\d+)\.", key)
        if match:
            blocks[match[1]] = max(blocks.get(match[1], 0), int(match[2]) + 1)
    dim, in_channels = state["patch_embed.proj.weight"].shape[:2]
    hidden = {
        dim * 2**i: state[f"{level}.0.ffn.project_out.weight"].shape[1] for i, level in enumerate(LEVELS)
    }
    return {
        "in_channels": in_channels,
        "out_channels": state["output.weight"].shape[0],
        "dim": dim,
        "num_blocks": [blocks[level] for level in LEVELS],
        "num_refinement_blocks": blocks.get("refinement", 0),
        "heads": [state[f"{level}.0.attn.temperature"].shape[0] for level in LEVELS],
        "ffn_expansion_factor": expansion_factor(hidden | dict(beside or {})),
        "bias": "encoder_level1.0.attn.qkv.bias" in state,
        "norm_bias": "encoder_level1.0.norm1.body.bias" in state,
    }
