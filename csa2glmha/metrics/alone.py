"""What modules of a network cost, counted without the network around them.

A search asks for the cost of hundreds of students that differ in a few layers. Counting all of each student
takes minutes for a large network. Here a layer is called alone, with what it was called with in one pass of
the whole, and of layers that are alike one is counted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from csa2glmha.core.hooks import CallArguments
from csa2glmha.metrics.complexity import copied, count_call, meta_input
from csa2glmha.networks.foreign import users_own

_META = torch.device("meta")
#: Of modules by name, every call in one pass; tensors have shapes, and no values.
Calls = Mapping[str, tuple[CallArguments, ...]]


@torch.no_grad()
def calls_of(model: nn.Module, names: Iterable[str], *inputs: Tensor | tuple[int, ...]) -> Calls:
    """The calls of some modules in one forward pass on inputs of these shapes, which computes no values.

    Args:
        model: the network; it is not changed.
        names: of the modules, in :func:`~csa2glmha.networks.foreign.users_own`.
        inputs: as of :func:`~csa2glmha.metrics.complexity.count_complexity`.
    """
    twin = copied(model, _META).eval()
    found: defaultdict[str, list[CallArguments]] = defaultdict(list)

    def see(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found[name].append(CallArguments(args, kwargs))

    own = users_own(twin)
    for name in names:
        own.get_submodule(name).register_forward_pre_hook(partial(see, name), with_kwargs=True)
    with _META:
        twin(*(meta_input(each, model) for each in inputs))
    return {name: tuple(calls) for name, calls in found.items()}


class CountedAlone:
    """Counts modules as they were called in a pass.

    Args:
        calls: of all that will be asked for, as of :func:`calls_of`.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 1))
        >>> counted = CountedAlone(calls_of(network, ["1"], (1, 3, 16, 16)))
        >>> counted.macs("1", network[1])
        6144
    """

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self._known: dict[Hashable, int] = {}

    def macs(self, name: str, module: nn.Module) -> int:
        """MACs of all calls of ``module``, which stands where the one of that name was."""
        return sum(self._of_call(module, call) for call in self.calls[name])

    def _of_call(self, module: nn.Module, call: CallArguments) -> int:
        key = (_alike(module), _alike_values(call))
        if key not in self._known:
            twin = copied(module, _META).eval()
            self._known[key] = count_call(twin, call.args, call.kwargs, _META).tallies[""].macs
        return self._known[key]


def _alike(module: nn.Module) -> Hashable:
    """The same for modules that run the same operators on the same shapes.

    Of what a module keeps all that can be read is compared. An object that says no more of itself than where
    it lies in memory is its own kind.
    """
    return tuple(
        (
            name,
            type(each),
            tuple((own, tuple(value.shape)) for own, value in each.named_parameters(recurse=False)),
            tuple((own, tuple(value.shape)) for own, value in each.named_buffers(recurse=False)),
            tuple(
                sorted((own, _told(value)) for own, value in vars(each).items() if not own.startswith("_"))
            ),
        )
        for name, each in module.named_modules()
    )


def _alike_values(call: CallArguments) -> Hashable:
    leaves, structure = tree_flatten(call)
    return tuple(map(_told, leaves)), repr(structure)


def _told(value: object) -> Hashable:
    told = str(tuple(value.shape)) if isinstance(value, Tensor) else repr(value)
    # Where one object lay another may lie later.
    return object() if " at 0x" in told else told
