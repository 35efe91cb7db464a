"""Reading a network of no family, by running it; it carries what was found.

From then on :func:`csa2glmha.reading.layers.attention_layers` finds its attention, and
:func:`csa2glmha.reading.feedforwards.feed_forwards` its feed-forward networks, in copies of it as well.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from csa2glmha.core.users_code import calls_users_code, described
from csa2glmha.networks.foreign import ForeignNetwork, Shape
from csa2glmha.networks.probe import noise
from csa2glmha.networks.ranges import RANGES
from csa2glmha.reading.layers import by_reason
from csa2glmha.reading.network import Readings, read_network

#: A recording is made of this height and width at most: it is as good as one of a large image.
_HEIGHT, _WIDTH = 64, 96

calls_users_code(__file__)


def read_own(network: nn.Module, inputs: Sequence[Tensor]) -> Readings:
    """Find the attention of a network.

    Args:
        network: with its weights; it gets the attribute ``recorded_readers``. What it raises is raised.
        inputs: that it takes, one image each, not square.

    Returns:
        What was found, and what was refused, layer by layer.
    """
    found = read_network(network, inputs)
    found.carried_by(network)
    return found


def read_on_part(network: nn.Module, inputs: Sequence[Tensor]) -> Readings:
    """As :func:`read_own`, on a small part of batches that were made for something else."""
    try:
        return read_own(network, narrowed(inputs))
    except Exception:  # a part may be too small for it; what it raises on the whole is the user's to see
        return read_own(network, tuple(each[:1] for each in inputs))


def read_on_noise(network: nn.Module, shapes: Sequence[Shape], value_range: str = "0-1") -> Readings:
    """As :func:`read_own`, on noise: shapes of inputs that it takes, and a name of :data:`RANGES`."""
    return read_own(network, tuple(map(RANGES[value_range].enter, noise(shapes))))


def read_foreign(model: ForeignNetwork) -> None:
    """As :func:`read_own`, of the network in ``model``, which says of itself what was refused.

    One that cannot be recorded can be run, tiled and exported all the same.
    """
    try:
        found = read_on_noise(model.network, model.interface.shapes, model.interface.value_range)
    except Exception as error:  # the user's code may raise anything
        model.refused = (("", f"it cannot be recorded: {described(error)}"),)
        return
    model.refused = tuple((each.name, each.reason) for each in found.refused)
    model.refused_feed_forwards = tuple((each.name, each.reason) for each in found.refused_feed_forwards)
    model.global_operators = tuple(
        f"{each.kind} in {each.module or 'the network itself'}" for each in found.operators
    )


def narrowed(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The first of a batch, no larger than is good for a recording, and not square where it can be cut."""
    first = inputs[0]
    if first.ndim != 4:
        return tuple(each[:1] for each in inputs)
    low, wide = min(first.shape[2], _HEIGHT), min(first.shape[3], _WIDTH)
    if low == wide and wide % 2 == 0:
        wide //= 2
    return tuple(
        each[:1, :, :low, :wide] if each.ndim == 4 and each.shape[2:] == first.shape[2:] else each[:1]
        for each in inputs
    )


def refusals(readings: Readings, widths: bool = False) -> tuple[str, ...]:
    """A line for each reason for which attention across channels was not read.

    Args:
        readings: of the network.
        widths: also for those for which feed-forward networks cannot be narrowed.
    """
    refused = ((each.name, each.reason) for each in readings.refused)
    wide = ((each.name, each.reason) for each in readings.refused_feed_forwards if widths)
    return (
        *(f"not converted: {each}" for each in by_reason(refused)),
        *(f"not narrowed: {each}" for each in by_reason(wide)),
    )
