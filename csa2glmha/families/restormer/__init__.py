"""Restormer, for images."""

from __future__ import annotations

from csa2glmha.families.family import Family
from csa2glmha.families.restormer.hyperparameters import RestormerHyperparameters, hyperparameters_from
from csa2glmha.families.restormer.network import Restormer
from csa2glmha.families.transposed.lowering import LOWERING
from csa2glmha.families.transposed.readers import GDFN_READER, MDTAReader

FAMILY = Family(
    name=Restormer.architecture,
    model=Restormer,
    signature=(
        "patch_embed.proj.weight",
        "encoder_level1.0.attn.temperature",
        "encoder_level1.0.attn.qkv_dwconv.weight",
        "encoder_level2.0.ffn.project_out.weight",
        "encoder_level3.0.ffn.project_out.weight",
        "latent.0.attn.temperature",
        "output.weight",
    ),
    hyperparameters=RestormerHyperparameters,
    hyperparameters_from=hyperparameters_from,
    readers=(MDTAReader(),),
    feed_forwards=(GDFN_READER,),
    lowering=LOWERING,
)
