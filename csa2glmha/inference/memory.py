"""How much memory a run takes: known before it starts, and how much there is."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from csa2glmha.core.device import free_memory
from csa2glmha.inference.grid import Tile, divide_axis
from csa2glmha.inference.lockstep import lockstep
from csa2glmha.networks import RestorationModel, skeleton_of

#: Measured peaks on a CPU are this much above the sum of the tensors: convolutions reorder their inputs and
#: outputs, memory that was freed is not at once given back, and small runs also load code.
OVERHEAD = 1.6
OVERHEAD_BYTES = 150 * 2**20
#: For tensors that only wait, which nothing is reordered of. 2048 x 2048 pixels take a student of published
#: size 3.5 GB with it where 4 are allowed; with 1.15 they took 3.8.
WAITING_OVERHEAD = 1.25


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes that a network takes beside its weights and the image.

    Attributes:
        tile: at most, while one tile goes through it.
        sample_fixed, sample_each: while tiles go through it side by side, and more for each of them.
    """

    tile: int
    sample_fixed: int
    sample_each: int

    def sample_size(self, budget: int) -> int:
        """How many tiles can go side by side."""
        return max(0, budget - self.sample_fixed) // self.sample_each


def whole_needs(model: RestorationModel, height: int, width: int) -> int:
    """Bytes that a run on one image takes at most, beside weights and image."""
    skeleton = skeleton_of(model)
    return _overhead(_peak(skeleton, lambda: skeleton(*_inputs(model, height, width, 1))))


def training_needs(model: RestorationModel, batch: int, height: int, width: int) -> int:
    """Bytes that a training step takes beside the weights: activations, gradients, Adam's moments."""
    skeleton = skeleton_of(model).requires_grad_(True)
    inputs = _inputs(model, height, width, batch)

    def step() -> Tensor:
        with torch.enable_grad():
            loss: Tensor = skeleton(*inputs).sum()
            loss.backward()
        return loss

    weights = sum(each.nbytes for each in model.parameters())
    return _overhead(_peak(skeleton, step) + 2 * weights)


def tile_needs(
    model: RestorationModel, tile: tuple[int, int], sample: tuple[int, int], shared: bool
) -> MemoryNeeds:
    """What tiles of some height and width, and sampled ones of another, take.

    Args:
        model: the network, left alone: a copy without data runs in its place.
        tile, sample: height and width.
        shared: the tiles share attention maps.
    """
    skeleton = skeleton_of(model)
    if not shared:
        return MemoryNeeds(_overhead(_peak(skeleton, lambda: skeleton(*_inputs(model, *tile, 1)))), 0, 0)
    memory, waiting = _Allocations(skeleton), 0

    def on_layer() -> None:
        nonlocal waiting
        waiting = max(waiting, memory.now)

    def one(allocations: _Allocations, place: Tile) -> Tensor:
        with allocations, torch.no_grad():
            output: Tensor = skeleton(*_inputs(model, place.rows.length, place.columns.length, 1))
            return output

    with lockstep(skeleton) as maps:
        maps.on_layer = on_layer
        maps.make(partial(one, memory), [_only_tile(sample)], lambda *_: None)
        single = _Allocations(skeleton)
        maps.alone(partial(one, single), _only_tile(tile))
    # While one tile computes, the others wait: each at the layer where that takes most, at worst.
    fixed = _overhead(memory.peak - waiting)
    return MemoryNeeds(_overhead(single.peak), fixed, int(waiting * WAITING_OVERHEAD))


def _only_tile(size: tuple[int, int]) -> Tile:
    rows, columns = (divide_axis(side, side, 0, 1)[0] for side in size)
    return Tile(rows, columns)


def available_bytes(device: torch.device) -> int:
    """Memory that can still be had on a device; on the CPU within the limit of its container."""
    if device.type == "cuda":
        # PyTorch keeps what it has freed, for itself.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    return free_memory()


def used_bytes(device: torch.device) -> int:
    """Memory of this process on a device."""
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def _overhead(peak: int) -> int:
    return int(peak * OVERHEAD) + OVERHEAD_BYTES


def _inputs(model: RestorationModel, height: int, width: int, batch: int) -> Sequence[Tensor]:
    # A mask has a batch axis of one where it is the same for all, but tiles have a part of it each.
    return [
        torch.empty(batch, *shape[1:], device="meta") for shape in model.input_shapes(height, width, batch)
    ]


@torch.no_grad()
def _peak(model: RestorationModel, run: Callable[[], Tensor]) -> int:
    allocations = _Allocations(model)
    with allocations:
        run()
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Adds up the tensors that are alive, beside those of a model.

    Attributes:
        now, peak: their bytes.
    """

    def __init__(self, model: RestorationModel) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self.now = 0
        # Views of weights would bring all of their storage in.
        weights = (*model.parameters(), *model.buffers())
        self._known: weakref.WeakSet[Any] = weakref.WeakSet(each.untyped_storage() for each in weights)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.now -= size
