"""A network in memory as one that takes images, so that folders of them can be its data."""

from __future__ import annotations

from torch import nn

from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.errors import NetworkError, UsageError
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.builder import Origin
from csa2glmha.networks.foreign import ForeignNetwork, Interface
from csa2glmha.networks.probe import probe
from csa2glmha.reading.layers import attention_layers, nothing_to_convert
from csa2glmha.reading.own import read_foreign


def on_images(network: nn.Module, options: ConvertOptions) -> RestorationModel:
    """The network as one from images in [0, 1] to images; what it takes and makes is found by trying.

    Args:
        network: any, in eval mode; one of a known family is itself.
        options: of them what the network takes and makes.

    Raises:
        NetworkError: it does not run on images, or makes none.
        UsageError: it has no attention that can be converted.
    """
    if isinstance(network, RestorationModel):
        return network
    kind = type(network)
    name = f"{kind.__module__}:{kind.__qualname__}"
    wanted = Interface((), 0, value_range=options.value_range, output_index=options.output_index)
    try:
        face = probe(network, name, options.example_shapes, wanted)
    except NetworkError as error:
        said = str(error).removeprefix(f"--network {name}: ")
        raise NetworkError(f"compress: {kind.__name__} {said}") from error
    model = ForeignNetwork(network, face, Origin(name, {}, {}))
    if not attention_layers(model):
        read_foreign(model)
    if not attention_layers(model):
        raise UsageError(nothing_to_convert(kind.__name__, model.refused))
    model.requires_grad_(False)
    return model.eval()
