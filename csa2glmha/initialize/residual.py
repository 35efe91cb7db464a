"""Watching where modules' outputs are added to the stream of a residual network.

A block computes x + f(x). Which code adds, and in which class, does not matter: the sum is seen as the
operator that takes the very tensor that the module gave. An output that goes somewhere else first is no
such part of a sum: what it is added to may be made of it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from csa2glmha.core.hooks import removed_after
from csa2glmha.data.batches import Inputs
from csa2glmha.networks import run
from csa2glmha.networks.foreign import users_own
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers

#: Called with a module's name, the stream before the sum and the module's output; gives the sum, or None:
#: it is as it would be.
OnSum = Callable[[str, Tensor, Tensor], Tensor | None]
_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


class ResidualSums(TorchDispatchMode):
    """Calls back for every sum of the stream and an expected output, in its own thread.

    Args:
        on_sum: see :data:`OnSum`.
        alone: modules whose output is not added; for those it is called at once, with zero as the stream.
    """

    def __init__(self, on_sum: OnSum, alone: frozenset[str] = frozenset()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self._on_sum, self._alone = on_sum, alone
        # The tensors are kept: a name is that of an object, whose place another could take.
        self._expected: dict[int, tuple[str, Tensor]] = {}

    def given(self, name: str, output: Tensor) -> Tensor | None:
        """A module gave this, and what it is added to is its stream; what it is to give in place of it."""
        if name in self._alone:
            return self._on_sum(name, output.new_zeros(()), output)
        self._expected[id(output)] = (name, output)
        return None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        total = None
        if func in _SUMS and (kwargs or {}).get("alpha", 1) == 1 and len(args) == 2:
            total = self._sum_of(*args) if isinstance(args[1], Tensor) else None
        for each in tree_leaves(args):
            self._expected.pop(id(each), None)
        if total is None:
            return func(*args, **(kwargs or {}))
        return total if func is _SUMS[0] else args[0].copy_(total)

    def _sum_of(self, first: Tensor, second: Tensor) -> Tensor | None:
        for stream, output in ((first, second), (second, first)):
            if id(output) in self._expected and stream.shape == output.shape:
                return self._on_sum(self._expected[id(output)][0], stream, output)
        return None


@contextlib.contextmanager
def expecting(modules: Mapping[str, nn.Module], sums: Callable[[], ResidualSums]) -> Iterator[None]:
    """Let the sums of this thread know of every output of the modules.

    Args:
        modules: by name.
        sums: gives those of the pass that is running.
    """

    def told(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Tensor | None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> Tensor | None:
            return sums().given(name, output) if isinstance(output, Tensor) else None

        return hook

    handles = [module.register_forward_hook(told(name)) for name, module in modules.items()]
    with removed_after(handles):
        yield


def skippable(model: nn.Module, inputs: Inputs) -> list[str]:
    """The layers that a network can go without, in the order in which they run.

    Attention and feed-forward networks whose output is added to a stream, and goes nowhere else.

    Args:
        model: a teacher, in eval mode.
        inputs: any that it takes.
    """
    own = users_own(model)
    # Where a feed-forward network is no module, its expansion would run all the same.
    wide = (name for name, layer in feed_forwards(model).items() if layer.parts.whole)
    names = [*attention_layers(model), *wide]
    order = residual_order({name: own.get_submodule(name) for name in names}, lambda: run(model, inputs))
    return [name for name, added in order.items() if added]


@torch.no_grad()
def residual_order(modules: Mapping[str, nn.Module], call: Callable[[], object]) -> dict[str, bool]:
    """The modules that run exactly once, in the order in which their outputs get their place.

    Args:
        modules: of one network, by name.
        call: runs that network on any input.

    Returns:
        By name, whether the output is added to a stream; otherwise it goes on as it is.
    """
    ran: list[tuple[str, bool]] = []

    def note(name: str, _: Tensor, __: Tensor) -> None:
        ran.append((name, True))

    class Noting(ResidualSums):
        def given(self, name: str, output: Tensor) -> None:
            ran.append((name, False))
            super().given(name, output)

    watched = Noting(note)
    with expecting(modules, lambda: watched), watched:
        call()
    runs = Counter(name for name, added in ran if not added)
    sums = {name for name, added in ran if added}
    return {name: added for name, added in ran if runs[name] == 1 and added == (name in sums)}
