"""A feed-forward network in one form, whatever the network it comes from.

On every pixel, from an input x:

    h = a(expansion(x))         n hidden channels; a works on each of them alone, with its neighbourhood
    y = contraction * h + bias  contraction: out x n

The expansion is pointwise. What lies between is channel-wise: a depthwise convolution, an activation, or a
gate, the product of two channels that make one hidden channel. So a hidden channel can be left out by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from csa2glmha.attention.layout import Layout
from csa2glmha.feedforward.tensors import Cut, leave_out

#: Convolutions run fastest on whole blocks of so many channels.
CHANNEL_BLOCK = 8
#: Where a contraction that has been narrowed keeps the channels that it had; a copy of it does, too.
_WIDTH_BEFORE = "width_before"


@dataclass(frozen=True)
class Parts:
    """Where the parts of a feed-forward network are, by their names in a module around it.

    Attributes:
        contraction: the pointwise convolution or linear layer from hidden channels to the output.
        cuts: the tensors that hidden channels can be left out of.
        whole: the module is the feed-forward network and nothing else: it gives what the contraction gives.
        output: how that lies when the module gives it; where it is not the whole, when the contraction does.
    """

    contraction: str
    cuts: tuple[Cut, ...]
    whole: bool = True
    output: Layout = "maps"


@dataclass(frozen=True)
class FeedForwardReader:
    """Where the parts of one kind of feed-forward module are.

    Attributes:
        module_type: the class of the modules.
        producers: names, within the module, of the convolutions whose outputs are hidden channels. Several
            outputs of one may make a hidden channel, as with a gate: with n hidden channels the outputs i,
            n + i, ... are those of channel i.
        contraction: that of the pointwise convolution behind them.
    """

    module_type: type[nn.Module]
    producers: tuple[str, ...]
    contraction: str

    def read(self, module: nn.Module, name: str = "") -> FeedForward:
        """The feed-forward network that a module of this class is; ``name``: of the module."""
        cuts = [Cut(f"{self.contraction}.weight", 1)]
        for producer in self.producers:
            cuts.append(Cut(f"{producer}.weight", 0))
            if module.get_submodule(producer).bias is not None:
                cuts.append(Cut(f"{producer}.bias", 0))
        return FeedForward(module, Parts(self.contraction, tuple(cuts)), name)


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward network of a model.

    Attributes:
        module: the whole, or a module around it.
        parts: where its parts are.
        path: name of the module in the model.
    """

    module: nn.Module
    parts: Parts
    path: str = ""

    @property
    def contraction(self) -> nn.Conv2d | nn.Linear:
        """The layer from hidden channels to the output."""
        found = self.module.get_submodule(self.parts.contraction)
        if not isinstance(found, nn.Conv2d | nn.Linear):
            raise TypeError(f"{self.parts.contraction}: a {type(found).__name__} is no contraction")
        return found

    @property
    def hidden(self) -> int:
        """n, the hidden channels."""
        return self.contraction.weight.shape[1]

    @property
    def hidden_before(self) -> int:
        """The hidden channels that it had before any were left out."""
        return int(vars(self.contraction).get(_WIDTH_BEFORE, self.hidden))

    @property
    def weight(self) -> Tensor:
        """(out, n), of the contraction."""
        return self.contraction.weight.detach().flatten(1)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names, in the model, of the modules that it is made of: what it costs is what they cost."""
        if self.parts.whole:
            return (self.path,)
        inner = dict.fromkeys(cut.module for cut in self.parts.cuts)
        # One with others inside holds no more than a few factors.
        leaves = [name for name in inner if name and not any(each.startswith(f"{name}.") for each in inner)]
        return tuple(f"{self.path}.{name}".strip(".") for name in leaves)

    def set_weight(self, weight: Tensor) -> None:
        """Give the contraction another weight (out, n), in place."""
        own = self.contraction.weight
        own.data.copy_(weight.view_as(own))

    def rows(self, features: Tensor) -> Tensor:
        """What the contraction is called with, as (B, n, pixels)."""
        if isinstance(self.contraction, nn.Conv2d):
            return features.flatten(2)
        return features.reshape(len(features), -1, features.shape[-1]).transpose(1, 2)

    def keep(self, channels: Sequence[int] | Tensor) -> None:
        """Leave out all hidden channels but these, in place, whatever the order they are given in.

        Raises:
            ValueError: no channels, or channels that are not there, or one of them twice.
        """
        # A network without weights is narrowed on the meta device, where a tensor has no values.
        kept = torch.as_tensor(channels, dtype=torch.long, device="cpu").sort().values
        hidden = self.hidden
        if not len(kept) or len(kept.unique()) != len(kept) or kept.min() < 0 or kept.max() >= hidden:
            raise ValueError(f"channels to keep: {kept.tolist()} are not some of {hidden}")
        vars(self.contraction).setdefault(_WIDTH_BEFORE, hidden)
        for cut in self.parts.cuts:
            leave_out(self.module, cut, kept, hidden)


def kept_channels(hidden: int, share: float) -> int:
    """How many of n hidden channels are kept at that share of them, in whole blocks where that is possible.

    >>> kept_channels(255, 0.5), kept_channels(255, 1.0), kept_channels(6, 0.5)
    (128, 255, 6)
    """
    if share >= 1:
        return hidden
    return min(max(round(hidden * share / CHANNEL_BLOCK), 1) * CHANNEL_BLOCK, hidden)
