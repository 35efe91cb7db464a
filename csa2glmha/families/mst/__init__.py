"""MST, from CASSI measurements to spectra."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from csa2glmha.families.family import Family, Specialise
from csa2glmha.families.mst.hyperparameters import MSTHyperparameters, hyperparameters_from
from csa2glmha.families.mst.lowering import LOWERING
from csa2glmha.families.mst.network import MST, bake_mask, freeze_mask_branch, unbake_mask
from csa2glmha.families.mst.readers import MSMSAReader
from csa2glmha.families.spectral.blocks import fusion
from csa2glmha.families.spectral.readers import FEED_FORWARD_READER


def _variant(state: Mapping[str, Tensor]) -> str | None:
    block = "encoder_layers.0.0.blocks.0.0"
    if f"{block}.to_q.weight" not in state or "mapping.weight" not in state:
        return None
    if "embedding_1.weight" in state and "embedding_2.weight" in state:
        return "MST for RGB images, of NTIRE 2022 (two embeddings make features and mask; mst is of CASSI)"
    if fusion(state) is not None and f"{block}.mm.depth_conv.weight" not in state:
        return "MST for real CASSI measurements (no mask branch, and a fusion in front; mst has the branch)"
    return None


FAMILY = Family(
    name=MST.architecture,
    model=MST,
    signature=(
        "embedding.weight",
        "encoder_layers.0.0.blocks.0.0.to_q.weight",
        "encoder_layers.0.0.blocks.0.0.mm.depth_conv.weight",
        "encoder_layers.0.2.weight",
        "bottleneck.blocks.0.0.rescale",
        "mapping.weight",
    ),
    hyperparameters=MSTHyperparameters,
    hyperparameters_from=hyperparameters_from,
    readers=(MSMSAReader(),),
    feed_forwards=(FEED_FORWARD_READER,),
    lowering=LOWERING,
    specialise=Specialise(bake_mask, unbake_mask, freeze_mask_branch),
    variant=_variant,
)
