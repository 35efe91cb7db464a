"""Narrower feed-forward networks: hidden channels chosen and the contraction refitted, in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.core.hooks import removed_after
from csa2glmha.core.parallel import in_threads
from csa2glmha.core.progress import manual_progress, say
from csa2glmha.core.text import listed
from csa2glmha.data.batches import Inputs
from csa2glmha.feedforward.choose import Removal, refitted, removal_order
from csa2glmha.feedforward.form import FeedForward
from csa2glmha.initialize.overflow import check_finite, naming
from csa2glmha.networks import run
from csa2glmha.reading.feedforwards import feed_forwards


@torch.no_grad()
def hidden_moments(
    model: nn.Module, layers: Mapping[str, FeedForward], batches: Sequence[Inputs]
) -> dict[str, Tensor]:
    """Second moments of hidden channels, means over all pixels: one pass of the network.

    Args:
        model: in eval mode.
        layers: its feed-forward networks, by name.
        batches: calibration inputs, a few images each.

    Returns:
        (n, n) of each layer that ran, float64 on the CPU.

    Raises:
        DataError: a hidden channel is not finite.
    """
    sums: dict[str, Tensor] = {}
    pixels = dict.fromkeys(layers, 0)

    def seen(name: str, hidden: Tensor) -> None:
        rows = layers[name].rows(hidden).transpose(0, 1).flatten(1)
        # Products in the network's own precision, sums of them in double.
        product = (rows @ rows.T).cpu().double()
        sums[name] = sums[name] + product if name in sums else product
        pixels[name] += rows.shape[1]

    def hook(name: str) -> Any:
        return lambda _, args: seen(name, args[0])

    handles = [layer.contraction.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    with removed_after(handles):
        total = sum(len(inputs[0]) for inputs in batches)
        with manual_progress(what="hidden channels", unit="image", total=total) as bar:
            for inputs in batches:
                run(model, inputs)
                bar.update(len(inputs[0]))
    for name, moment in sums.items():
        check_finite(name, "its hidden channels are not finite", [moment])
    return {name: moment / pixels[name] for name, moment in sums.items()}


@dataclass(frozen=True)
class HiddenMoments:
    """What is known of the hidden channels of feed-forward networks, by name.

    Attributes:
        moments: second moments.
        orders: in which the channels go, and what that costs at each width.
    """

    moments: Mapping[str, Tensor]
    orders: Mapping[str, Removal]

    @classmethod
    def of(
        cls, model: nn.Module, layers: Mapping[str, FeedForward], batches: Sequence[Inputs]
    ) -> HiddenMoments:
        """One pass of a network over its calibration inputs; see :func:`hidden_moments`."""
        moments = hidden_moments(model, layers, batches)
        found: dict[str, Removal] = {}

        def sweep(name: str) -> Iterator[None]:
            with naming(name):
                found[name] = removal_order(moments[name], layers[name].weight)
            yield

        in_threads(sweep, list(moments), what="choosing channels", unit="layer")
        return cls(moments, {name: found[name] for name in moments})


@torch.no_grad()
def narrow(
    layers: Mapping[str, FeedForward], widths: Mapping[str, int], hidden: HiddenMoments
) -> dict[str, float]:
    """Bring feed-forward networks to a width each, in place, with the contraction that fits best.

    Args:
        layers: of the student, by name.
        widths: hidden channels to keep of each that is to be narrower.
        hidden: of the teacher's. Layers that no calibration image reached are not in it, and stay wide.

    Returns:
        The error of each layer's output, as a share of its energy.
    """
    errors = {}
    idle = [name for name in widths if name not in hidden.orders]
    if idle:
        say(f"not narrowed: {listed(idle, 3)}: no calibration image reaches it")
        widths = {name: width for name, width in widths.items() if name not in idle}
    for name, width in widths.items():
        layer, order = layers[name], hidden.orders[name]
        if width >= layer.hidden:
            continue
        kept = order.kept(width)
        weight = refitted(hidden.moments[name], layer.weight, kept)
        layer.keep(kept)
        layer.set_weight(weight)
        errors[name] = order.error(width)
    return errors


def narrow_feed_forwards(
    teacher: nn.Module, student: nn.Module, widths: Mapping[str, int], batches: Sequence[Inputs]
) -> dict[str, float]:
    """Leave out what the student's feed-forward networks need least, by the teacher's activations.

    Args:
        teacher: in eval mode.
        student: its feed-forward networks are the teacher's still; those named are narrowed in place.
        widths: hidden channels to keep of each that is to be narrower.
        batches: calibration inputs, a few images each.

    Returns:
        The error of each one's output, as a share of its energy.
    """
    layers = {name: layer for name, layer in feed_forwards(teacher).items() if name in widths}
    return narrow(feed_forwards(student), widths, HiddenMoments.of(teacher, layers, batches))
