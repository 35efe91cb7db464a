"""The deployment form of a network: the same function of its inputs, in fewer and cheaper operators."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from csa2glmha.config.ranks import Ranks
from csa2glmha.export.lowering.folding import Laid
from csa2glmha.families.registry import lowering_of
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers

ModelT = TypeVar("ModelT", bound=RestorationModel)


@torch.no_grad()
def deploy(model: ModelT, channels_last: bool = False) -> ModelT:
    """An equivalent network for inference: exact rewrites of the whole network, attention included.

    Attention layers that were not converted are taken as GLMHA of full rank, which they are.

    Args:
        model: teacher or student; it is not changed.
        channels_last: written for a runtime that keeps maps so in memory; see
            :class:`~csa2glmha.export.lowering.folding.Laid`.

    Returns:
        A copy on the CPU in float32 and eval mode that cannot be trained or stored further. Its outputs are
        the model's up to rounding.
    """
    deployed = copy.deepcopy(model).to("cpu", torch.float32).eval()
    layers = attention_layers(deployed)
    if layers:
        deployed, _ = initialise_student(deployed, plan_layers(layers, Ranks()), None)
    lowering = lowering_of(model)
    for name, module in list(deployed.named_modules()):
        rewriter = lowering.get(type(module))
        if rewriter is not None:
            deployed.set_submodule(name, rewriter(module))
    for module in deployed.modules():
        if isinstance(module, Laid):
            module.channels_last = channels_last
    return deployed.eval().requires_grad_(False)


def to_half(deployed: nn.Module) -> None:
    """Convolutions in half precision, with the maps between them; what is small stays in float32."""
    for module in deployed.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            module.half()
