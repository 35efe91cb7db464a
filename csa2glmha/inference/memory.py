"""How much memory a run takes: known before it starts, and how much there is."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from csa2glmha.core.device import free_memory
from csa2glmha.core.errors import Csa2GlmhaError
from csa2glmha.inference.grid import Tile, divide_axis
from csa2glmha.inference.lockstep import lockstep
from csa2glmha.networks import RestorationModel, skeleton_of
from csa2glmha.networks.probe import noise

T = TypeVar("T")

#: Measured peaks on a CPU are this much above the sum of the tensors: convolutions reorder their inputs and
#: outputs, memory that was freed is not at once given back, and small runs also load code.
OVERHEAD = 1.6
OVERHEAD_BYTES = 150 * 2**20
#: For tensors that only wait, which nothing is reordered of. 2048 x 2048 pixels take a student of published
#: size 3.5 GB with it where 4 are allowed; with 1.15 they took 3.8.
WAITING_OVERHEAD = 1.25
#: Height and width at most of images that are really run on, to know what larger ones take.
_SMALL = 128


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
    return _measured(model, lambda double: _overhead(double.peak(height, width)))


def training_needs(model: RestorationModel, batch: int, height: int, width: int) -> int:
    """Bytes that a training step takes beside the weights: activations, gradients, Adam's moments."""
    weights = sum(each.nbytes for each in model.parameters())

    def measure(double: _Double) -> int:
        double.network.requires_grad_(True)
        return _overhead(double.peak(height, width, batch, backward=True) + 2 * weights)

    return _measured(model, measure)


def tile_needs(
    model: RestorationModel, tile: tuple[int, int], sample: tuple[int, int], shared: bool
) -> MemoryNeeds:
    """What tiles of some height and width, and sampled ones of another, take.

    Args:
        model: the network, left alone: a copy runs in its place, without data if that can be.
        tile, sample: height and width.
        shared: the tiles share attention maps.
    """
    if not shared:
        return MemoryNeeds(_measured(model, lambda double: _overhead(double.peak(*tile))), 0, 0)
    return _measured(model, lambda double: _shared_needs(double, tile, sample))


def _shared_needs(double: _Double, tile: tuple[int, int], sample: tuple[int, int]) -> MemoryNeeds:
    memory, waiting = _Allocations(double.network), 0

    def on_layer() -> None:
        nonlocal waiting
        waiting = max(waiting, memory.now)

    def one(allocations: _Allocations, place: Tile) -> Tensor:
        with allocations, torch.no_grad():
            return double.run(double.inputs(place.rows.length, place.columns.length, 1))

    with lockstep(double.network) as maps:
        maps.on_layer = on_layer
        maps.make(partial(one, memory), [_only_tile(double.sides(*sample))], lambda *_: None)
        single = _Allocations(double.network)
        maps.alone(partial(one, single), _only_tile(double.sides(*tile)))
    # While one tile computes, the others wait: each at the layer where that takes most, at worst.
    times = double.times(*sample)
    fixed, each = _overhead(times * (memory.peak - waiting)), int(times * waiting * WAITING_OVERHEAD)
    return MemoryNeeds(_overhead(double.times(*tile) * single.peak), fixed, each)


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


def _overhead(peak: float) -> int:
    return int(peak * OVERHEAD) + OVERHEAD_BYTES


@dataclass(frozen=True)
class _Double:
    """A copy that runs in the place of a network.

    Attributes:
        network: the copy.
        shapes_only: it has no data. Otherwise it is run on small images, and what larger ones take is in
            proportion to their pixels.
    """

    network: RestorationModel
    shapes_only: bool

    def sides(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that it is run at in the place of these."""
        if self.shapes_only:
            return height, width
        most = -(-_SMALL // self.network.size_multiple) * self.network.size_multiple
        return min(height, most), min(width, most)

    def times(self, height: int, width: int) -> float:
        """How many times the pixels it is run at these are."""
        rows, columns = self.sides(height, width)
        return height * width / (rows * columns)

    def inputs(self, height: int, width: int, batch: int) -> Sequence[Tensor]:
        """What the network takes, at just this height and width."""
        # A mask has a batch axis of one where it is the same for all, but tiles have a part of it each.
        shapes = [(batch, *shape[1:]) for shape in self.network.input_shapes(height, width, batch)]
        if self.shapes_only:
            return [torch.empty(shape, device="meta") for shape in shapes]
        device = next(self.network.parameters()).device
        return [each.to(device) for each in noise(shapes)]

    def run(self, inputs: Sequence[Tensor]) -> Tensor:
        """The network's output."""
        output: Tensor = self.network(*inputs)
        return output

    def peak(self, height: int, width: int, batch: int = 1, backward: bool = False) -> float:
        """Bytes of all tensors at most in a run, or in a step of training."""
        allocations = _Allocations(self.network)
        with allocations, torch.set_grad_enabled(backward):
            output = self.run(self.inputs(*self.sides(height, width), batch))
            if backward:
                output.sum().backward()
        return allocations.peak * self.times(height, width)


def _measured(model: RestorationModel, measure: Callable[[_Double], T]) -> T:
    """What is measured of a copy: without data, or with them where what the network runs depends on them."""
    try:
        return measure(_Double(skeleton_of(model), True))
    except Csa2GlmhaError:
        raise
    except Exception:  # the network's own
        return measure(_Double(copy.deepcopy(model), False))


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
