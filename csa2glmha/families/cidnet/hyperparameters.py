"""What hyper-parameters of HVI-CIDNet may be, and how they are read from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from csa2glmha.families.hyperparameters import Heads, Hyperparameters, Width, expansion_factor

#: Blocks that the attention of a network has.
_BLOCKS = 11


class CIDNetHyperparameters(Hyperparameters):
    """Of :class:`csa2glmha.families.cidnet.network.CIDNet`."""

    channels: list[Width] = Field(min_length=4, max_length=4)
    heads: list[Heads] = Field(min_length=3, max_length=3)
    ffn_expansion_factor: Annotated[float, Field(gt=0, le=2**16)]
    norm: bool

    @property
    def blocks(self) -> int:
        return _BLOCKS

    def model_post_init(self, context: Any) -> None:
        for width, heads in zip(self.channels[1:], self.heads, strict=True):
            if width % heads:
                raise ValueError(f"heads: {heads} do not divide {width} channels evenly")
            if int(width * self.ffn_expansion_factor) < 1:
                raise ValueError("ffn_expansion_factor: leaves no hidden channel")


def hyperparameters_from(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the hyper-parameters of HVI-CIDNet from the names and shapes of its parameters."""
    first = state["HVE_block0.1.weight"].shape[0]
    levels = (1, 2, 3)
    feed_forward = [state[f"HV_LCA{level}.gdfn.project_out.weight"].shape for level in levels]
    return {
        "channels": [first, *(state[f"HVE_block{level}.down.0.weight"].shape[0] for level in levels)],
        "heads": [state[f"HV_LCA{level}.ffn.temperature"].shape[0] for level in levels],
        "ffn_expansion_factor": expansion_factor({width: hidden for width, hidden, *_ in feed_forward}),
        "norm": "HVE_block1.norm.weight" in state,
    }
