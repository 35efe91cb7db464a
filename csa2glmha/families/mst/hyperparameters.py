"""What hyper-parameters of MST may be, and how they are read from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from csa2glmha.families.hyperparameters import Blocks, Hyperparameters, Side, Width
from csa2glmha.families.spectral.blocks import unet_num_blocks


class MSTHyperparameters(Hyperparameters):
    """Of :class:`csa2glmha.families.mst.network.MST`."""

    dim: Width
    num_blocks: list[Blocks] = Field(min_length=1, max_length=8)
    mask_size: list[Side] | None = Field(None, min_length=2, max_length=2)

    @property
    def blocks(self) -> int:
        return sum(self.num_blocks)


def hyperparameters_from(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read MST's hyper-parameters from the names and shapes of its parameters."""
    return {"dim": state["embedding.weight"].shape[0], "num_blocks": unet_num_blocks(state)}
