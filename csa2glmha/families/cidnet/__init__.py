"""HVI-CIDNet, for images taken in low light."""

from __future__ import annotations

from csa2glmha.families.cidnet.hyperparameters import CIDNetHyperparameters, hyperparameters_from
from csa2glmha.families.cidnet.lowering import LOWERING
from csa2glmha.families.cidnet.network import CIDNet
from csa2glmha.families.cidnet.readers import IEL_READER, CABReader
from csa2glmha.families.family import Family

FAMILY = Family(
    name=CIDNet.architecture,
    model=CIDNet,
    signature=(
        "HVE_block0.1.weight",
        "IE_block0.1.weight",
        "HV_LCA1.ffn.q_dwconv.weight",
        "I_LCA1.gdfn.dwconv1.weight",
        "HVD_block1.up_scale.0.weight",
        "ID_block0.1.weight",
        "trans.density_k",
    ),
    hyperparameters=CIDNetHyperparameters,
    hyperparameters_from=hyperparameters_from,
    readers=(CABReader(),),
    feed_forwards=(IEL_READER,),
    lowering=LOWERING,
    # The published network computes it and does not look at the result.
    unused=("I_LCA5",),
)
