"""PromptIR, for images that one network restores from several degradations."""

from __future__ import annotations

from csa2glmha.families.family import Family
from csa2glmha.families.promptir.hyperparameters import PromptIRHyperparameters, hyperparameters_from
from csa2glmha.families.promptir.lowering import LOWERING
from csa2glmha.families.promptir.network import PromptIR
from csa2glmha.families.transposed.readers import GDFN_READER, MDTAReader

FAMILY = Family(
    name=PromptIR.architecture,
    model=PromptIR,
    signature=(
        "patch_embed.proj.weight",
        "encoder_level1.0.attn.qkv_dwconv.weight",
        "encoder_level2.0.ffn.project_out.weight",
        "encoder_level3.0.ffn.project_out.weight",
        "latent.0.attn.temperature",
        *(f"prompt{level}.{name}" for level in (1, 2, 3) for name in ("prompt_param", "linear_layer.weight")),
        *(f"noise_level{level}.ffn.project_out.weight" for level in (1, 2, 3)),
        "output.weight",
    ),
    hyperparameters=PromptIRHyperparameters,
    hyperparameters_from=hyperparameters_from,
    readers=(MDTAReader(),),
    feed_forwards=(GDFN_READER,),
    lowering=LOWERING,
    unused=(
        *(f"chnl_reduce{level}" for level in (1, 2, 3)),
        *(f"reduce_noise_channel_{level}" for level in (1, 2, 3)),
    ),
)
