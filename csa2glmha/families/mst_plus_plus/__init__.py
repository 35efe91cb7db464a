"""MST++, from RGB images to spectra."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from csa2glmha.families.family import Family
from csa2glmha.families.mst_plus_plus.hyperparameters import MSTPlusPlusHyperparameters, hyperparameters_from
from csa2glmha.families.mst_plus_plus.lowering import LOWERING
from csa2glmha.families.mst_plus_plus.network import MSTPlusPlus
from csa2glmha.families.mst_plus_plus.readers import SMSAReader
from csa2glmha.families.spectral.blocks import fusion
from csa2glmha.families.spectral.readers import FEED_FORWARD_READER


def _variant(state: Mapping[str, Tensor]) -> str | None:
    weight = fusion(state)
    if "body.0.encoder_layers.0.0.blocks.0.0.to_q.weight" not in state or "conv_in.weight" not in state:
        return None
    if weight is None:
        return None
    before = f" of {weight.shape[1]} to {weight.shape[0]} channels" if weight.ndim == 4 else ""
    return f"MST++ for CASSI measurements (with a fusion{before} in front; mst_plus_plus is of RGB images)"


FAMILY = Family(
    name=MSTPlusPlus.architecture,
    model=MSTPlusPlus,
    signature=(
        "conv_in.weight",
        "body.0.embedding.weight",
        "body.0.encoder_layers.0.0.blocks.0.0.to_q.weight",
        "body.0.bottleneck.blocks.0.0.rescale",
        "body.0.mapping.weight",
        "conv_out.weight",
    ),
    hyperparameters=MSTPlusPlusHyperparameters,
    hyperparameters_from=hyperparameters_from,
    readers=(SMSAReader(),),
    feed_forwards=(FEED_FORWARD_READER,),
    lowering=LOWERING,
    variant=_variant,
)
