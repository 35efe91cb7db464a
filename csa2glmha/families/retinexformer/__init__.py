"""Retinexformer, for images taken in low light."""

from __future__ import annotations

from csa2glmha.families.family import Family
from csa2glmha.families.retinexformer.hyperparameters import (
    RetinexformerHyperparameters,
    hyperparameters_from,
)
from csa2glmha.families.retinexformer.lowering import LOWERING
from csa2glmha.families.retinexformer.network import Retinexformer
from csa2glmha.families.retinexformer.readers import IGMSAReader
from csa2glmha.families.spectral.readers import FEED_FORWARD_READER

FAMILY = Family(
    name=Retinexformer.architecture,
    model=Retinexformer,
    signature=(
        "body.0.estimator.conv1.weight",
        "body.0.estimator.depth_conv.weight",
        "body.0.denoiser.embedding.weight",
        "body.0.denoiser.encoder_layers.0.0.blocks.0.0.to_q.weight",
        "body.0.denoiser.encoder_layers.0.2.weight",
        "body.0.denoiser.bottleneck.blocks.0.0.rescale",
        "body.0.denoiser.mapping.weight",
    ),
    hyperparameters=RetinexformerHyperparameters,
    hyperparameters_from=hyperparameters_from,
    readers=(IGMSAReader(),),
    feed_forwards=(FEED_FORWARD_READER,),
    lowering=LOWERING,
)
