"""The hidden channel that every number of a tensor belongs to, as a tensor of the same shape; -1: to none."""

from __future__ import annotations

import torch
from torch import Tensor

from csa2glmha.feedforward.tensors import Cut
from csa2glmha.reading.linear import Unreadable, words
from csa2glmha.reading.recording import Operation, Value


def along(line: Tensor, axis: int, shape: tuple[int, ...]) -> Tensor:
    """A hidden channel for each place along an axis, as a tensor of that shape."""
    sizes = [1] * len(shape)
    sizes[axis] = len(line)
    return line.view(sizes).expand(shape)


def line_of(channels: Tensor, axis: int, operation: Operation) -> Tensor:
    """The inverse.

    Raises:
        Unreadable: what lies at one place of the axis belongs to several hidden channels.
    """
    rows = channels.movedim(axis, 0).flatten(1)
    if not bool((rows == rows[:, :1]).all()):
        raise Unreadable(f"what goes into {words(operation)} is of several hidden channels at once")
    return rows[:, 0]


def of_operand(channels: Tensor, shape: tuple[int, ...], operation: Operation) -> Tensor:
    """The hidden channels in an operand that is broadcast to the result; none where several share it."""
    more = channels.ndim - len(shape)
    sizes = (1,) * more + shape
    if more < 0 or any(size not in (1, full) for size, full in zip(sizes, channels.shape, strict=True)):
        raise Unreadable(f"{words(operation)} of its hidden channels")
    for axis, size in enumerate(sizes):
        if size == 1 and channels.shape[axis] > 1:
            first = channels.narrow(axis, 0, 1)
            if not bool((channels == first).all()):
                return torch.full(shape, -1, dtype=torch.int32)
            channels = first
    return channels.reshape(shape)


def merged(known: Tensor, channels: Tensor, value: Value) -> Tensor:
    """The hidden channels of a tensor that two operators take."""
    if bool(((known >= 0) & (channels >= 0) & (known != channels)).any()):
        raise Unreadable("one channel of it is made into several hidden channels")
    return torch.maximum(known, channels)


def cut_of(value: Value, channels: Tensor, n: int) -> Cut:
    """Where the hidden channels are in a parameter.

    Raises:
        Unreadable: in no order that is known, or only in a part of it.
    """
    for axis, length in enumerate(channels.shape):
        rows = channels.movedim(axis, 0).reshape(length, -1)
        if length % n or not bool((rows == rows[:, :1]).all()):
            continue
        places = torch.arange(length, dtype=torch.int32)
        if torch.equal(rows[:, 0], places % n):
            return Cut(value.name, axis)
        if torch.equal(rows[:, 0], places // (length // n)):
            return Cut(value.name, axis, together=True)
    part = bool((channels < 0).any())
    raise Unreadable(
        f"only a part of {value.name!r} makes its hidden channels"
        if part
        else f"its hidden channels are in {value.name!r} in an order that is not known"
    )
