"""What of a student is linear in its weights and is refitted: the last projection of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from csa2glmha.attention.guided import GuidedAttention
from csa2glmha.feedforward.form import FeedForward
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.replacement import replacement_of

#: Called with what goes into a projection, (B, d, H, W).
Seen = Callable[[Tensor], None]


class Output(Protocol):
    """A layer whose output is W h and more, h its features (B, d, H, W)."""

    @property
    def module(self) -> nn.Module:
        """The layer."""
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


@dataclass(frozen=True)
class FeedForwardOutput:
    """The contraction of a feed-forward network; its features are the hidden channels."""

    layer: FeedForward

    @property
    def module(self) -> nn.Module:
        return self.layer.module

    @property
    def weight(self) -> Tensor:
        return self.layer.weight

    def set_weight(self, weight: Tensor) -> None:
        self.layer.contraction.weight.data.copy_(weight[:, :, None, None])

    def watch(self, seen: Seen) -> RemovableHandle:
        return self.layer.contraction.register_forward_pre_hook(lambda _, args: seen(args[0]))


@dataclass(frozen=True)
class AttentionOutput:
    """The output projection of a GLMHA layer; its features are the attended values of all heads."""

    module: GuidedAttention

    @property
    def weight(self) -> Tensor:
        return self.module.output.detach()

    def set_weight(self, weight: Tensor) -> None:
        self.module.output.data.copy_(weight)

    def watch(self, seen: Seen) -> RemovableHandle:
        def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with torch.no_grad():
                seen(self.module.attended(self.module.bind(args, kwargs)))

        return self.module.register_forward_pre_hook(hook, with_kwargs=True)


def outputs_of(student: nn.Module, teacher: nn.Module) -> dict[str, Output]:
    """All such layers of a student whose names are names of modules of its teacher, too."""
    found: dict[str, Output] = {
        name: AttentionOutput(module)
        for name, module in users_own(student).named_modules()
        if isinstance(module, GuidedAttention) and _gives_maps(module)
    }
    found |= {name: FeedForwardOutput(layer) for name, layer in feed_forwards(student).items()}
    names = dict(users_own(teacher).named_modules())
    return {name: output for name, output in found.items() if name in names}


def _gives_maps(layer: GuidedAttention) -> bool:
    """Whether the layer's output is its own and (B, C, H, W); a recorded module may give tokens."""
    if not layer.config.out_channels:  # the module mixes its values itself
        return False
    replacement = replacement_of(layer)
    return replacement is None or replacement.wiring.output == "maps"
