"""Leaving hidden channels out of the tensors of modules, in place: the modules stay, and what they do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd


@dataclass(frozen=True)
class Cut:
    """A tensor that hidden channels can be left out of: a parameter or a buffer.

    Attributes:
        tensor: its name.
        axis: of the channels. Its length is a multiple of n, the hidden channels: several entries may belong
            to one of them, as with a gate.
        together: entries of one hidden channel lie side by side; otherwise i, n + i, ... are those of
            channel i.
    """

    tensor: str
    axis: int
    together: bool = False

    @property
    def module(self) -> str:
        """Name of the module that holds it."""
        return self.tensor.rpartition(".")[0]

    def entries(self, kept: Tensor, hidden: int, length: int) -> Tensor:
        """The entries along the axis, of that length, that belong to some of n hidden channels.

        >>> Cut("weight", 0).entries(torch.tensor([0, 2]), 3, 6)
        tensor([0, 2, 3, 5])
        >>> Cut("weight", 0, together=True).entries(torch.tensor([0, 2]), 3, 6)
        tensor([0, 1, 4, 5])
        """
        each = length // hidden
        inner = torch.arange(each, device=kept.device)
        if self.together:
            return (kept[:, None] * each + inner).flatten()
        return (kept + hidden * inner[:, None]).flatten()


def leave_out(module: nn.Module, cut: Cut, kept: Tensor, hidden: int) -> None:
    """Leave all but some of n hidden channels out of one tensor in a module, in place.

    Args:
        module: the names in ``cut`` are those within it.
        cut: the tensor.
        kept: (k,) channels, ascending.
        hidden: n.
    """
    owner, name = module.get_submodule(cut.module), cut.tensor.rpartition(".")[2]
    old: Tensor = getattr(owner, name)
    entries = cut.entries(kept, hidden, old.shape[cut.axis]).to(old.device)
    new = old.detach().index_select(cut.axis, entries)
    setattr(owner, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    if name == "weight":
        _tell_size(owner, new)


def _tell_size(owner: nn.Module, weight: Tensor) -> None:
    """Bring what a module says of its size in line with its weight."""
    if isinstance(owner, _ConvNd):
        each = owner.out_channels // owner.groups
        owner.out_channels = weight.shape[0]
        if owner.groups > 1:
            owner.groups = owner.out_channels // each
        owner.in_channels = weight.shape[1] * owner.groups
    elif isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = weight.shape
    elif isinstance(owner, _BatchNorm):
        owner.num_features = weight.shape[0]
    elif isinstance(owner, nn.PReLU):
        owner.num_parameters = weight.shape[0]
