"""Finding the attention layers of a network and putting replacements in their place.

To support another family: write an adapter like
:class:`~csa2glmha.families.restormer.attention.MDTAAdapter` and add it to :data:`ADAPTERS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.glmha import GLMHAConfig, GuidedAttention
from csa2glmha.families.restormer.attention import MDTAAdapter
from csa2glmha.families.spectral.attention import MSMSAAdapter, SMSAAdapter


class Adapter(Protocol):
    """How one family's attention module maps to the canonical form and back."""

    @property
    def module_type(self) -> type[nn.Module]:
        """The class of the modules it reads."""
        ...

    def read(self, module: nn.Module) -> ChannelAttention:
        """The layer in canonical form."""
        ...

    def attention_input(self, args: tuple[Any, ...]) -> Tensor:
        """The (B, C, H, W) input of the projections, from the arguments of the module's call."""
        ...

    def value_factors(self, module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
        """What V is multiplied by before the attention, (1 or B, heads * c, H, W); None: nothing."""
        ...

    def build(self, module: nn.Module, config: GLMHAConfig) -> nn.Module:
        """An uninitialised replacement that is called as the module is.

        What lies beside the attention it takes over from the module, which is not used any more.
        """
        ...


ADAPTERS: tuple[Adapter, ...] = (MDTAAdapter(), SMSAAdapter(), MSMSAAdapter())


@dataclass(frozen=True)
class AttentionLayer:
    """One CSA layer of a network."""

    name: str
    module: nn.Module
    adapter: Adapter
    form: ChannelAttention


def attention_layers(model: nn.Module) -> dict[str, AttentionLayer]:
    """Every CSA layer of ``model`` by qualified name, in execution order of definition."""
    found = {}
    for name, module in model.named_modules():
        for adapter in ADAPTERS:
            if isinstance(module, adapter.module_type):
                found[name] = AttentionLayer(name, module, adapter, adapter.read(module))
    return found


def replace_layers(model: nn.Module, configs: dict[str, GLMHAConfig]) -> None:
    """Put uninitialised GLMHA layers in the place of the named CSA layers of ``model``.

    Raises:
        KeyError: a name is not a CSA layer of this network.
    """
    layers = attention_layers(model)
    for name, config in configs.items():
        layer = layers[name]
        model.set_submodule(name, layer.adapter.build(layer.module, config))


def glmha_layers(model: nn.Module) -> dict[str, GuidedAttention]:
    """Every GLMHA layer of ``model`` by qualified name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GuidedAttention)}
