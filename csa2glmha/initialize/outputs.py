"""Layers whose output is linear in one of their weights, and what goes into that weight.

Output projections of attention, and contractions of feed-forward networks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.attention.layout import Layout, from_maps, to_maps
from csa2glmha.feedforward.form import FeedForward
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.replacement import replacement_of

#: Called with what goes into a projection, (B, d, pixels).
Seen = Callable[[Tensor], None]


class Output(Protocol):
    """A layer whose output is W h and more, h its features (B, d, pixels)."""

    @property
    def module(self) -> nn.Module:
        """The layer."""
        ...

    @property
    def layout(self) -> Layout:
        """How its output lies."""
        ...

    @property
    def weight(self) -> Tensor:
        """W, (out, d)."""
        ...

    def set_weight(self, weight: Tensor) -> None:
        """Replace W."""
        ...

    def watch(self, seen: Seen) -> RemovableHandle:
        """Call ``seen`` with the features whenever the layer runs, before its output is there."""
        ...


def rows_of(output: Tensor, layout: Layout) -> Tensor:
    """What lies as a layer's output does, as (B, out, pixels)."""
    return to_maps(output, layout).flatten(2)


def as_output(rows: Tensor, layout: Layout, like: Tensor) -> Tensor:
    """The inverse, in the shape of an output."""
    height, width = to_maps(like, layout).shape[2:]
    return from_maps(rows.unflatten(2, (height, width)), layout)


@dataclass(frozen=True)
class FeedForwardOutput:
    """The contraction of a feed-forward network; its features are the hidden channels."""

    layer: FeedForward

    @property
    def module(self) -> nn.Module:
        """The whole network where that is a module, or else the contraction."""
        return self.layer.module if self.layer.parts.whole else self.layer.contraction

    @property
    def layout(self) -> Layout:
        return self.layer.parts.output

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def set_weight(self, weight: Tensor) -> None:
        self.layer.set_weight(weight)

    def watch(self, seen: Seen) -> RemovableHandle:
        return self.layer.contraction.register_forward_pre_hook(
            lambda _, args: seen(self.layer.rows(args[0]))
        )


@dataclass(frozen=True)
class AttentionOutput:
    """The output projection of a GLMHA layer; its features are the attended values of all heads."""

    module: GuidedAttention

    @property
    def layout(self) -> Layout:
        replacement = replacement_of(self.module)
        return "maps" if replacement is None else replacement.wiring.output

    @property
    def weight(self) -> Tensor:
        return self.module.output.detach()

    def set_weight(self, weight: Tensor) -> None:
        self.module.output.data.copy_(weight)

    def watch(self, seen: Seen) -> RemovableHandle:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with torch.no_grad():
                seen(self.module.attended(self.module.bind(args, kwargs)).flatten(2))

        return self.module.register_forward_pre_hook(hook, with_kwargs=True)


def outputs_of(student: nn.Module, teacher: nn.Module) -> dict[str, Output]:
    """All such layers of a student whose names are names of modules of its teacher, too."""
    found: dict[str, Output] = {
        name: AttentionOutput(module)
        for name, module in users_own(student).named_modules()
        # One without channels to give mixes its values itself.
        if isinstance(module, GuidedAttention) and module.config.out_channels
    }
    found |= {name: FeedForwardOutput(layer) for name, layer in feed_forwards(student).items()}
    names = dict(users_own(teacher).named_modules())
    return {name: output for name, output in found.items() if name in names}
