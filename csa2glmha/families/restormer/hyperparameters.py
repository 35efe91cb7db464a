"""What hyper-parameters of Restormer may be, and how they are read from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from csa2glmha.families.transposed.hyperparameters import TransposedHyperparameters, levels_from


class RestormerHyperparameters(TransposedHyperparameters):
    """Of :class:`csa2glmha.families.restormer.network.Restormer`."""

    dual_pixel: bool


def hyperparameters_from(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read Restormer's hyper-parameters from the names and shapes of its parameters."""
    return levels_from(state) | {"dual_pixel": "skip_conv.weight" in state}
