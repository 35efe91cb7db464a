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

#: Convolutions run fastest on whole blocks of so many channels.
CHANNEL_BLOCK = 8
#: Where a module that has been narrowed keeps the channels that it had; a copy of it does, too.
_WIDTH_BEFORE = "width_before"


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


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward network of a model.

    Attributes:
        module: the whole.
        reader: where its parts are.
    """

    module: nn.Module
    reader: FeedForwardReader

    @property
    def contraction(self) -> nn.Conv2d:
        """The convolution from hidden channels to the output."""
        return _convolution(self.module, self.reader.contraction)

    @property
    def hidden(self) -> int:
        """n, the hidden channels."""
        return self.contraction.in_channels

    @property
    def hidden_before(self) -> int:
        """The hidden channels that it had before any were left out."""
        return int(vars(self.module).get(_WIDTH_BEFORE, self.hidden))

    @property
    def weight(self) -> Tensor:
        """(out, n), of the contraction."""
        return self.contraction.weight.detach()[:, :, 0, 0]

    def keep(self, channels: Sequence[int] | Tensor) -> None:
        """Leave out all hidden channels but these, in place; the contraction keeps its columns of them.

        Raises:
            ValueError: no channels, or channels that are not there, or one of them twice.
        """
        # A network without weights is narrowed on the meta device, where a tensor has no values.
        kept = torch.as_tensor(channels, dtype=torch.long, device="cpu")
        hidden = self.hidden
        if not len(kept) or len(kept.unique()) != len(kept) or kept.min() < 0 or kept.max() >= hidden:
            raise ValueError(f"channels to keep: {kept.tolist()} are not some of {hidden}")
        vars(self.module).setdefault(_WIDTH_BEFORE, hidden)
        for name in self.reader.producers:
            producer = _convolution(self.module, name)
            outputs = torch.cat([kept + first for first in range(0, producer.out_channels, hidden)])
            self.module.set_submodule(name, _with_outputs(producer, outputs))
        old = self.contraction
        new = nn.Conv2d(len(kept), old.out_channels, 1, bias=old.bias is not None)
        _fill(new, old.weight[:, kept.to(old.weight.device)], old.bias)
        self.module.set_submodule(self.reader.contraction, new.train(old.training))


def kept_channels(hidden: int, share: float) -> int:
    """How many of n hidden channels are kept at that share of them, in whole blocks where that is possible.

    >>> kept_channels(255, 0.5), kept_channels(255, 1.0), kept_channels(6, 0.5)
    (128, 255, 6)
    """
    if share >= 1:
        return hidden
    return min(max(round(hidden * share / CHANNEL_BLOCK), 1) * CHANNEL_BLOCK, hidden)


def _convolution(module: nn.Module, name: str) -> nn.Conv2d:
    found = module.get_submodule(name)
    if not isinstance(found, nn.Conv2d):
        raise TypeError(f"{name}: a {type(found).__name__} where a convolution is expected")
    return found


def _with_outputs(old: nn.Conv2d, outputs: Tensor) -> nn.Conv2d:
    """The convolution with some of its outputs; of a depthwise one, their inputs too."""
    depthwise = old.groups > 1
    count = len(outputs)
    new = nn.Conv2d(
        count if depthwise else old.in_channels,
        count,
        (old.kernel_size[0], old.kernel_size[1]),
        padding=old.padding if isinstance(old.padding, str) else (old.padding[0], old.padding[1]),
        dilation=(old.dilation[0], old.dilation[1]),
        groups=count if depthwise else 1,
        bias=old.bias is not None,
    )
    outputs = outputs.to(old.weight.device)
    _fill(new, old.weight[outputs], None if old.bias is None else old.bias[outputs])
    return new.train(old.training)


def _fill(new: nn.Conv2d, weight: Tensor, bias: Tensor | None) -> None:
    new.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        new.bias = nn.Parameter(bias.detach().clone())
