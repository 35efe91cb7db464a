"""What operators of a recording are, and numbers for the channels and pixels of what they make."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from csa2glmha.reading.recording import Operation, Value

#: Operators that may be a projection, or a product of two maps.
PROJECTIONS = frozenset(("convolution", "addmm", "mm", "bmm", "linear", "baddbmm", "_convolution"))


def is_projection(operation: Operation | None) -> bool:
    """A convolution or a matrix product with weights that do not depend on the inputs."""
    if operation is None or operation.name not in PROJECTIONS:
        return False
    return not is_product(operation) and not operation.outputs[0].constant


def is_product(operation: Operation | None) -> bool:
    """A matrix product of two tensors that both depend on the inputs."""
    if operation is None or operation.name not in ("bmm", "mm", "baddbmm"):
        return False
    return not any(factor.constant for factor in factors(operation))


def factors(product: Operation) -> tuple[Value, Value]:
    """The two sides of a matrix product."""
    left, right = product.args[1:3] if product.name == "baddbmm" else product.args[:2]
    return left, right


def channel_axis(value: Value) -> int:
    """The axis of channels, in what a projection made, or in what nobody made."""
    made = value.producer
    last = len(value.shape) - 1
    if is_projection(made):
        assert made is not None
        if made.name in ("convolution", "_convolution"):
            return 1
        return last - 1 if made.name in ("mm", "bmm") and made.args[0].constant else last
    return 1 if len(value.shape) == 4 else last


def codes(value: Value) -> Tensor:
    """A number for each number of a tensor, in memory as the tensor is, so that all views hold."""
    return _numbered(value, torch.arange(value.tensor.numel(), dtype=torch.int32).view(value.shape))


def channels_of(value: Value) -> Tensor:
    """As :func:`codes`, the number of the channel everywhere."""
    axis = channel_axis(value)
    line = torch.arange(value.shape[axis], dtype=torch.int32)
    return _numbered(value, line.view(-1, *[1] * (len(value.shape) - 1 - axis)).expand(value.shape))


def pixels_of(value: Value) -> Tensor:
    """As :func:`codes`, the number of the pixel everywhere, in raster order, image after image."""
    axis = channel_axis(value)
    others = [length for position, length in enumerate(value.shape) if position != axis]
    grid = torch.arange(prod(others), dtype=torch.int32).view(others)
    return _numbered(value, grid.unsqueeze(axis).expand(value.shape))


def _numbered(value: Value, numbers: Tensor) -> Tensor:
    empty = torch.empty_like(value.tensor, dtype=torch.int32, requires_grad=False, device="cpu")
    return empty.copy_(numbers)
