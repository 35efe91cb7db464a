"""Reading the attention of a network of the user's own, once, when it is made."""

from __future__ import annotations

from torch import nn

from csa2glmha.core.users_code import calls_users_code, described
from csa2glmha.networks.foreign import RANGES, ForeignNetwork, Interface
from csa2glmha.networks.probe import noise
from csa2glmha.reading.network import Readings, read_network

calls_users_code(__file__)


def read_own(model: ForeignNetwork) -> None:
    """Find the attention of the user's network by recording, and let the network carry what was found.

    From then on :func:`csa2glmha.reading.layers.attention_layers` finds it, in copies of the network, too.
    What cannot be read is refused layer by layer; the network can be run, tiled and exported all the same.

    Args:
        model: with its weights; its own outputs do not change.
    """
    try:
        found = read_module(model.network, model.interface)
    except Exception as error:  # the user's code may raise anything
        model.refused = (("", f"it cannot be recorded: {described(error)}"),)
        return
    model.refused = tuple((each.name, each.reason) for each in found.refused)
    model.global_operators = tuple(
        f"{each.kind} in {each.module or 'the network itself'}" for each in found.operators
    )


def read_module(network: nn.Module, interface: Interface) -> Readings:
    """The same for a module alone, of which it is known what it takes; what the module raises is raised."""
    low, span = RANGES[interface.value_range]
    inputs = tuple(each * span + low for each in noise(interface.shapes))
    found = read_network(network, inputs)
    # On the user's own module: a student is made in that one.
    found.carried_by(network)
    return found
