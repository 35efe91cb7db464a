"""Layers that a student goes without: nothing is added to the stream in their place."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from csa2glmha.networks.foreign import users_own


class Skipped(nn.Module):
    """What stands in the place of a skipped layer, called as that was.

    It gives a zero without dimensions. So it takes the place of layers alone whose output goes nowhere but
    into a sum with a stream of its shape; see :func:`csa2glmha.initialize.residual.residual_order`.

    >>> import torch
    >>> x = torch.ones(1, 2, 4, 4)
    >>> bool((x + Skipped()(x) == x).all())
    True
    """

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        given = next(each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor))
        return given.new_zeros(())


def skip(model: nn.Module, names: Iterable[str]) -> None:
    """Let a network go without layers, in place.

    Args:
        model: the network.
        names: of the modules, in :func:`~csa2glmha.networks.foreign.users_own`.

    Raises:
        ValueError: the network has no module of that name.
    """
    own = users_own(model)
    modules = dict(own.named_modules())
    for name in names:
        if not name or name not in modules:
            raise ValueError(f"skipped layer {name!r}: the network has none of that name")
        own.set_submodule(name, Skipped())


def skipped_layers(model: nn.Module) -> list[str]:
    """The names of the layers that a student goes without, in order of definition."""
    modules = users_own(model).named_modules()
    return [name for name, module in modules if isinstance(module, Skipped)]
