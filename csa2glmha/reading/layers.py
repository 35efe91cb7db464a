"""Finding the attention layers of a network and putting replacements in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.core.errors import UsageError
from csa2glmha.core.text import listed, shown
from csa2glmha.families.registry import readers_of
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import ForeignNetwork, users_own
from csa2glmha.reading.reader import Reader


@dataclass(frozen=True)
class AttentionLayer:
    """One CSA layer of a network."""

    name: str
    module: nn.Module
    reader: Reader
    form: ChannelAttention


def attention_layers(model: nn.Module) -> dict[str, AttentionLayer]:
    """Every CSA layer of ``model`` by qualified name, in execution order of definition.

    A network may carry readers of its own: ``model.recorded_readers``, a mapping from names of modules. They
    come before those that families have for a type of module.

    The names are those in :func:`~csa2glmha.networks.foreign.users_own`, here and in all that takes layers by
    name.
    """
    found: dict[str, AttentionLayer] = {}
    own = users_own(model)
    recorded: Mapping[str, Reader] = getattr(own, "recorded_readers", {})
    families_readers = readers_of(model)
    for name, module in own.named_modules():
        readers = (recorded[name], *families_readers) if name in recorded else families_readers
        # What has been replaced is not of the reader's type any more.
        reader = next((each for each in readers if isinstance(module, each.module_type)), None)
        if reader is not None:
            found[name] = AttentionLayer(name, module, reader, reader.read(module).aligned())
    return found


def convertible_layers(model: RestorationModel, source: object) -> dict[str, AttentionLayer]:
    """As :func:`attention_layers`, of a network that is to be converted.

    Args:
        model: the network.
        source: its file, for the message.

    Raises:
        UsageError: it has none, all are refused, or its family does not say how they are read.
    """
    layers = attention_layers(model)
    if not layers:
        raise UsageError(f"{shown(str(source))}: {why_none(model)}; csa2glmha inspect shows what it has")
    return layers


def why_none(model: RestorationModel) -> str:
    """What is said of a network in which there are no layers to convert."""
    if isinstance(model, ForeignNetwork):
        return nothing_to_convert(model.architecture, model.refused)
    return f"no reader is written for the attention of {model.architecture}: it is not converted"


def by_reason(refused: Iterable[tuple[str, str]]) -> list[str]:
    """Modules that were refused, put together where the reason is the same."""
    names: dict[str, list[str]] = {}
    for name, reason in refused:
        names.setdefault(reason, []).append(name or "the network itself")
    return [f"{listed(each, 3)}: {reason}" for reason, each in names.items()]


def nothing_to_convert(network: str, refused: Sequence[tuple[str, str]]) -> str:
    """What is said of a network that was recorded where there is no attention, or all of it is refused."""
    if not refused:
        return f"{network} has no attention across channels, so there is nothing to convert"
    return f"no attention of {network} can be converted: {'; '.join(by_reason(refused))}"


def replace_layers(model: nn.Module, configs: dict[str, GLMHAConfig]) -> None:
    """Put uninitialised GLMHA layers in the place of the named CSA layers of ``model``.

    Raises:
        KeyError: a name is not a CSA layer of this network.
    """
    layers = attention_layers(model)
    for name, config in configs.items():
        layer = layers[name]
        users_own(model).set_submodule(name, layer.reader.build(layer.module, config))


def glmha_layers(model: nn.Module) -> dict[str, GuidedAttention]:
    """Every GLMHA layer of ``model`` by qualified name."""
    modules = users_own(model).named_modules()
    return {name: module for name, module in modules if isinstance(module, GuidedAttention)}
