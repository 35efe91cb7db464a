"""Watching where modules' outputs are added to the stream of a residual network.

A block computes x + f(x). Which code adds, and in which class, does not matter: the sum is seen as the
operator that takes the very tensor that the module gave.
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

#: Called with a module's name, the stream before the sum and the module's output; gives the sum, or None:
#: it is as it would be.
OnSum = Callable[[str, Tensor, Tensor], Tensor | None]
_SUMS = (torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor)


class ResidualSums(TorchDispatchMode):
    """Calls back for every sum of the stream and an expected output, in its own thread.

    Args:
        on_sum: see :data:`OnSum`.
    """

    def __init__(self, on_sum: OnSum) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # PyTorch's
        self._on_sum = on_sum
        # The tensors are kept: a name is that of an object, whose place another could take.
        self._expected: dict[int, tuple[str, Tensor]] = {}

    def expect(self, name: str, output: Tensor) -> None:
        """A module gave this; what it is added to is its stream."""
        self._expected[id(output)] = (name, output)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in _SUMS or (kwargs or {}).get("alpha", 1) != 1 or len(args) != 2:
            # What goes somewhere else first is not what a block adds: the rest of a sum may be made of it.
            for each in tree_leaves(args):
                self._expected.pop(id(each), None)
            return func(*args, **(kwargs or {}))
        for stream, output in (args, args[::-1]):
            if id(output) in self._expected and isinstance(stream, Tensor) and stream.shape == output.shape:
                name, _ = self._expected.pop(id(output))
                total = self._on_sum(name, stream, output)
                if total is None:
                    break
                return total if func is _SUMS[0] else args[0].copy_(total)
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def expecting(modules: Mapping[str, nn.Module], sums: Callable[[], ResidualSums]) -> Iterator[None]:
    """Let the sums of this thread know of every output of the modules.

    Args:
        modules: by name.
        sums: gives those of the pass that is running.
    """

    def told(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                sums().expect(name, output)

        return hook

    handles = [module.register_forward_hook(told(name)) for name, module in modules.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def residual_order(modules: Mapping[str, nn.Module], call: Callable[[], object]) -> list[str]:
    """The modules whose output is added to a stream exactly once, in the order of the sums.

    Args:
        modules: of one network, by name.
        call: runs that network on any input.
    """
    seen: list[str] = []

    def note(name: str, _: Tensor, __: Tensor) -> None:
        seen.append(name)

    watched = ResidualSums(note)
    with expecting(modules, lambda: watched), watched:
        call()
    times = Counter(seen)
    return [name for name in seen if times[name] == 1]
