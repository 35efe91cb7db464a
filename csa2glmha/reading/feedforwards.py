"""Finding the feed-forward networks of a model, and giving them other widths."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from csa2glmha.families.registry import feed_forward_readers_of
from csa2glmha.feedforward.form import FeedForward
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.recorded_feedforward import RecordedFeedForward, carried_by


def feed_forwards(model: nn.Module) -> dict[str, FeedForward]:
    """Every feed-forward network of ``model`` by qualified name, in order of definition.

    Of a network that was recorded, those are found that the recording has shown. Of others, those whose kind
    the model's family knows; of a module of no family, the kinds of all.

    The name is that of the module that is one. Where the code of a larger module runs it beside other things,
    it is that of its contraction.
    """
    own = users_own(model)
    recorded = carried_by(own)
    if recorded is not None:
        return {name: layer for name, each in recorded.items() if (layer := _there(each, own)) is not None}
    readers = feed_forward_readers_of(model)
    found: dict[str, FeedForward] = {}
    for name, module in own.named_modules():
        reader = next((each for each in readers if isinstance(module, each.module_type)), None)
        if reader is not None:
            found[name] = reader.read(module, name)
    return found


def _there(recorded: RecordedFeedForward, own: nn.Module) -> FeedForward | None:
    """A recorded one in its network; None: another module has taken its place."""
    try:
        return recorded.put_into(own)
    except ValueError:
        return None


def narrowed_widths(model: nn.Module) -> dict[str, int]:
    """Of every feed-forward network that has lost hidden channels, how many it has left."""
    found = feed_forwards(model).items()
    return {name: layer.hidden for name, layer in found if layer.hidden < layer.hidden_before}


def narrow_to(model: nn.Module, widths: Mapping[str, int]) -> None:
    """Bring feed-forward networks to the given numbers of hidden channels, whichever those are, in place.

    Raises:
        ValueError: a name is not one of this network's, or it has no so many channels.
    """
    layers = feed_forwards(model)
    for name, width in widths.items():
        if name not in layers:
            raise ValueError(f"feed-forward network {name!r}: the network has none of that name")
        if type(width) is not int or not 0 < width <= layers[name].hidden:
            raise ValueError(
                f"feed-forward network {name!r}: {width!r} of its {layers[name].hidden} channels"
            )
        layers[name].keep(range(width))
