"""What hyper-parameters of Retinexformer may be, and how they are read from its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from csa2glmha.families.hyperparameters import Blocks, Hyperparameters, Width
from csa2glmha.families.spectral.blocks import unet_num_blocks


class RetinexformerHyperparameters(Hyperparameters):
    """Of :class:`csa2glmha.families.retinexformer.network.Retinexformer`."""

    in_channels: Width
    n_feat: Width
    stage: Blocks
    num_blocks: list[Blocks] = Field(min_length=2, max_length=8)

    @property
    def blocks(self) -> int:
        return self.stage * sum(self.num_blocks)

    def model_post_init(self, context: Any) -> None:
        if self.n_feat % (self.in_channels + 1):
            raise ValueError(
                f"n_feat: {self.n_feat} features do not make {self.in_channels + 1} even groups, one for "
                "each channel and one for their mean"
            )


def hyperparameters_from(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read Retinexformer's hyper-parameters from the names and shapes of its parameters."""
    stages = [int(match[1]) for key in state if (match := re.match(r"body\.(\d+)\.", key))]
    n_feat, in_channels = state["body.0.denoiser.embedding.weight"].shape[:2]
    return {
        "in_channels": in_channels,
        "n_feat": n_feat,
        "stage": max(stages) + 1,
        "num_blocks": unet_num_blocks(state, "body.0.denoiser."),
    }
