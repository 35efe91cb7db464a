"""Following hidden channels back through a recording, from a contraction to what expanded them.

Every number of a tensor on the way belongs to one hidden channel, or to none. The contraction says so of what
it takes; operators are gone through backwards from there, whatever the layout of their tensors. So it shows
which rows of which weights make a hidden channel, and whether each is made by itself.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import torch
from torch import Tensor

from csa2glmha.feedforward.tensors import Cut
from csa2glmha.reading.hidden_axes import along, cut_of, line_of, merged, of_operand
from csa2glmha.reading.linear import Unreadable, words
from csa2glmha.reading.operands import channel_axis, codes, is_product, is_projection
from csa2glmha.reading.recording import Operation, Value
from csa2glmha.reading.trails import BATCH_NORMS, BY_NUMBER, MOVES, Step

#: Operators that make each number of the numbers at its place alone.
_EACH = BY_NUMBER | frozenset(
    (
        "expand",
        "_prelu_kernel",
        "mish",
        "maximum",
        "minimum",
        "addcmul",
        "lerp",
        "log",
        "sin",
        "cos",
        "gt",
        "ge",
        "lt",
        "le",
        "reciprocal",
        "sign",
        "expm1",
        "log_sigmoid_forward",
    )
)
#: Operators on maps (B, C, ...) that make each channel of that channel alone.
_MAPS = frozenset(
    (
        "avg_pool2d",
        "max_pool2d_with_indices",
        "constant_pad_nd",
        "reflection_pad2d",
        "replication_pad2d",
        "upsample_nearest2d",
        "upsample_bilinear2d",
        "upsample_bicubic2d",
    )
)
#: Operators that leave fewer numbers: behind them is another thing than hidden channels.
_REDUCTIONS = frozenset(("mean", "sum", "amax", "max", "_adaptive_avg_pool2d", "var", "var_mean", "std"))


class NoHidden(Unreadable):
    """These are no hidden channels of a feed-forward network, and nobody would take them for some."""


@dataclass(frozen=True)
class HiddenChannels:
    """How the hidden channels of one contraction are made, in one call.

    Attributes:
        channels: how many there are.
        operations: all that makes them, those on their weights included.
        expansions: the pointwise layers that they begin with, as input and output channels.
        values: the tensors that they are in, on the way.
        tensors: parameters and buffers with an entry or more for each.
        cuts: the same by name, with the place of the entries.
    """

    channels: int
    operations: frozenset[Operation]
    expansions: tuple[tuple[int, int], ...]
    values: tuple[Value, ...]
    tensors: tuple[Value, ...]
    cuts: tuple[Cut, ...]

    @property
    def expanded(self) -> bool:
        """Something makes more channels than it takes."""
        return any(made > taken for taken, made in self.expansions)


def hidden_channels(features: Value, axis: int) -> HiddenChannels:
    """Follow the channels that a contraction takes to what expanded them.

    Args:
        features: what it takes.
        axis: of its channels.

    Raises:
        NoHidden: they are no such channels.
        Unreadable: an operator mixes them, or they cannot be followed.
    """
    walk = _ChannelWalk()
    line = torch.arange(features.shape[axis], dtype=torch.int32)
    walk.see(features, along(line, axis, features.shape))
    while walk.todo:
        walk.step(walk.operations[-heapq.heappop(walk.todo)])
    n = features.shape[axis]
    tensors = [value for value in walk.channels if value.constant and value.producer is None]
    return HiddenChannels(
        n,
        frozenset(walk.operations.values()),
        tuple(walk.expansions),
        tuple(value for value in walk.channels if not value.constant),
        tuple(tensors),
        tuple(cut_of(value, walk.channels[value], n) for value in tensors),
    )


class _ChannelWalk:
    """The tensors seen so far, each with the hidden channel of every number in it; -1: of none."""

    def __init__(self) -> None:
        self.channels: dict[Value, Tensor] = {}
        self.operations: dict[int, Operation] = {}
        self.expansions: list[tuple[int, int]] = []
        #: What made them, the last operator first: by then all that take a tensor have been gone through.
        self.todo: list[int] = []

    def see(self, value: Value, channels: Tensor) -> None:
        """A tensor that hidden channels are made of."""
        if bool((channels < 0).all()):
            return
        known = self.channels.get(value)
        if known is not None:
            channels = merged(known, channels, value)
        self.channels[value] = channels
        made = value.producer
        if known is not None or (made is None and value.constant and value.name):
            return
        if made is None and not value.constant:
            raise NoHidden("they are the network's input")
        if made is None:
            raise Unreadable("its hidden channels are made of a tensor that is no parameter")
        if value not in made.outputs:
            raise Unreadable("its hidden channels are written to in part")
        if made.index not in self.operations:
            self.operations[made.index] = made
            heapq.heappush(self.todo, -made.index)

    def step(self, operation: Operation) -> None:
        """From the results of an operator to what it takes."""
        name = operation.name.rstrip("_")
        made = {value: self.channels[value] for value in operation.outputs if value in self.channels}
        if is_projection(operation):
            self._project(operation, made[operation.outputs[0]])
        elif name in MOVES and name != "expand":
            self._move(operation, made)
        elif name in BATCH_NORMS:
            self._batch_norm(operation, made[operation.outputs[0]])
        elif name in _MAPS:
            source = operation.inputs[0]
            line = line_of(made[operation.outputs[0]], 1, operation)
            if source.shape[1] != len(line):
                raise Unreadable(f"{words(operation)} of its hidden channels")
            self.see(source, along(line, 1, source.shape))
        elif name == "glu":
            channels = next(iter(made.values()))
            axis = operation.args[1] if len(operation.args) > 1 else -1
            self.see(operation.inputs[0], torch.cat((channels, channels), axis))
        elif name in _EACH:
            channels = next(iter(made.values()))
            for value in dict.fromkeys(operation.inputs):
                self.see(value, of_operand(channels, value.shape, operation))
        elif is_product(operation) or name.startswith("_scaled_dot_product"):
            raise NoHidden("they are the result of an attention")
        elif all(value.constant for value in made):
            raise Unreadable("weights that make its hidden channels are made of other tensors")
        else:
            raise Unreadable(f"{words(operation)} of its hidden channels")

    def _move(self, operation: Operation, made: dict[Value, Tensor]) -> None:
        for source in dict.fromkeys(operation.inputs):
            if source.tensor.dtype in (torch.int64, torch.bool):  # the indices of a selection
                continue
            for result, channels in made.items():
                index = Step("move", operation, source, result).replay(codes(source)).flatten()
                flat = channels.flatten()
                there = (index >= 0) & (flat >= 0)
                index, flat = index[there].long(), flat[there]
                found = torch.full((source.tensor.numel(),), -1, dtype=torch.int32)
                found[index] = flat
                if not torch.equal(found[index], flat):
                    raise Unreadable("one channel of it is made into several hidden channels")
                self.see(source, found.view(source.shape))

    def _batch_norm(self, operation: Operation, channels: Tensor) -> None:
        if operation.name == "native_batch_norm" and operation.args[5]:
            raise Unreadable("a batch norm with statistics of the images")
        line = line_of(channels, 1, operation)
        for value in operation.inputs:
            self.see(value, along(line, 1 if value is operation.inputs[0] else 0, value.shape))

    def _project(self, operation: Operation, channels: Tensor) -> None:
        line = line_of(channels, channel_axis(operation.outputs[0]), operation)
        if operation.name == "convolution":
            self._convolve(operation, line)
            return
        if operation.kwargs or operation.name not in ("addmm", "mm", "bmm"):
            raise Unreadable(f"its hidden channels are made by {operation.name}")
        left, right = operation.args[-2:]
        weight, axis = (left, -2) if left.constant else (right, -1)
        self._expand(weight, axis, line)
        if operation.name == "addmm":
            bias = operation.args[0]
            self.see(bias, of_operand(channels, bias.shape, operation))

    def _convolve(self, operation: Operation, line: Tensor) -> None:
        source, weight, bias, *_, transposed, _, groups = operation.args
        size = "x".join(map(str, weight.shape[2:]))
        if transposed or not weight.constant:
            raise Unreadable("its hidden channels are made by another convolution")
        if groups == 1 and set(weight.shape[2:]) == {1}:
            self._expand(weight, 0, line)
        elif groups != source.shape[1] or groups == 1:
            raise Unreadable(f"a {size} convolution across its hidden channels")
        else:
            table = line.view(groups, -1)
            taken = table.max(1).values
            if not bool(((table == taken[:, None]) | (table < 0)).all()):
                raise Unreadable("a convolution makes several hidden channels of one")
            self.see(weight, along(line, 0, weight.shape))
            self.see(source, along(taken, 1, source.shape))
        if bias is not None:
            self.see(bias, line)

    def _expand(self, weight: Value, axis: int, line: Tensor) -> None:
        """A pointwise layer: the hidden channels begin here."""
        taken = weight.shape[1] if axis == 0 else weight.shape[-1 if axis == -2 else -2]
        self.expansions.append((taken, len(line)))
        self.see(weight, along(line, axis, weight.shape))


def expansion_behind(features: Value, channels: int) -> bool:
    """Whether a pointwise layer that makes more than it takes, and at least so many, is behind some features.

    Depthwise convolutions may lie in between, and what has no weights, but no product of two maps.
    """
    todo, seen = [features], set[Value]()
    while todo and len(seen) < 64:
        value = todo.pop()
        made = value.producer
        if value.constant or value in seen or made is None:
            continue
        seen.add(value)
        attention = is_product(made) or made.name.startswith("_scaled_dot_product")
        if attention or made.name in _REDUCTIONS:
            continue
        if not is_projection(made):
            todo.extend(made.inputs)
            continue
        wide = made.outputs[0].shape[channel_axis(made.outputs[0])]
        taken = next(each for each in made.inputs if not each.constant)
        narrow = taken.shape[1 if made.name == "convolution" else -1]
        depthwise = made.name == "convolution" and made.args[8] == narrow > 1
        pointwise = made.name != "convolution" or set(made.args[1].shape[2:]) == {1}
        if depthwise:
            todo.extend(made.inputs)
        elif pointwise and wide > narrow and wide >= channels:
            return True
    return False
