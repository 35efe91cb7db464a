"""Networks whose code runs other operators at larger sizes: ``if x.shape[2] > 512``.

PyTorch's exporter runs the network once, at a small size, and what it did there is in the graph. The graph
of such a network is right up to some size only, and nobody is told.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from csa2glmha.export.verify import Case, case_of
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import ForeignNetwork

#: Steps from the size that is exported: pixels that leave the same rest, whatever the network pads to.
_STEP, _STEPS = 128, 16
#: Pixels of a side up to which outputs are compared there.
_LARGEST_COMPARED = 512


def cases_of_branches(network: RestorationModel, first: Case, notes: list[str]) -> list[Case]:
    """A further size to compare a file at, where the network's code runs other operators.

    Args:
        network: that is exported for any size.
        first: of the size at which it is exported.
        notes: get one where that size is too large to compare at.
    """
    batch, _, *sides = first.inputs[0].shape
    larger = branches_at(network, sides[0], sides[1], batch)
    if larger is None:
        return []
    if max(larger) <= _LARGEST_COMPARED:
        return [case_of(network, first.inputs, (1, network.in_channels, *larger))]
    at, made = ("{} x {}".format(*size) for size in (larger, sides))
    notes.append(
        f"the network's code runs other operators at {at} pixels than at {made}, where the file was made: "
        "compare it with the network at the sizes that you use, or give --shape"
    )
    return []


def branches_at(network: RestorationModel, height: int, width: int, batch: int = 1) -> tuple[int, int] | None:
    """The first of larger sizes at which the network's own code runs other operators; None: there is none.

    It is run without values, so that large sizes cost nothing. Code that cannot be run so is not looked at.

    Args:
        network: only networks of the user's own are looked at; ours decide nothing by sizes.
        height, width: of the input that is exported, in pixels.
        batch: of it.
    """
    if not isinstance(network, ForeignNetwork) or network.fixed_size is not None:
        return None
    bare = copy.deepcopy(network).to("meta")
    step = _STEP * network.size_multiple

    def shapes_at(count: int) -> Sequence[tuple[int, ...]]:
        return network.input_shapes(height + count * step, width + count * step, batch)

    first = _run(bare, shapes_at(0), None)
    if first is None:
        return None

    def differs(count: int) -> bool | None:
        found = _run(bare, shapes_at(count), first.names)
        return None if found is None else found.differs

    if not differs(_STEPS):
        return None
    count = _smallest(lambda count: differs(count) is True, _STEPS)
    return height + count * step, width + count * step


def _smallest(differs: Callable[[int], bool], high: int) -> int:
    """The smallest number at which something differs, which it does at ``high`` and not at 0."""
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if differs(middle) else (middle, high)
    return high


@torch.no_grad()
def _run(
    bare: RestorationModel, shapes: Sequence[tuple[int, ...]], expected: list[str] | None
) -> _Recorder | None:
    """Run the network at these input shapes; None where it cannot be run without values."""
    recorder = _Recorder(expected)
    try:
        with recorder:
            bare(*(torch.empty(shape, device="meta") for shape in shapes))
    # The user's code, and operators that know nothing of tensors without values, raise what they like.
    except Exception:
        return recorder if recorder.differs else None
    recorder.differs |= expected is not None and len(recorder.names) != len(expected)
    return recorder


class _Recorder(TorchDispatchMode):
    """The names of what runs, in order.

    Args:
        expected: what ran at another size. The first thing that differs ends the run, since a loop over the
            windows of a large image may take minutes.
    """

    def __init__(self, expected: list[str] | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.differs = False
        self._expected = expected

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, at = str(func), len(self.names)
        if self._expected is not None and self._expected[at : at + 1] != [name]:
            self.differs = True
            raise RuntimeError("other operators")
        self.names.append(name)
        return func(*args, **(kwargs or {}))
