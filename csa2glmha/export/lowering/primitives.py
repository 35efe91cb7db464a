"""Functions with an ONNX form of their own, for networks that are to be exported.

In PyTorch they are ordinary code. A symbolic trace (``torch.fx``) records a call of one as a single step,
which the exporter translates as a whole: shapes stay open in the graph, with few operators, and what needs
float32 in a half-precision network says so.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

Function = TypeVar("Function", bound=Callable[..., Any])


def primitive(function: Function) -> Function:
    """Make a function of tensors one step of a symbolic trace."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if has_torch_function(args):
            return handle_torch_function(wrapper, args, *args, **kwargs)
        return function(*args, **kwargs)

    return cast(Function, wrapper)


@primitive
def tokens(maps: Tensor, heads: int, channels: int) -> Tensor:
    """(B, heads * channels, H, W) to (B, heads, channels, H * W)."""
    return maps.reshape(maps.shape[0], heads, channels, -1)


@primitive
def tokens_last(maps: Tensor, heads: int, channels: int) -> Tensor:
    """(B, heads * channels, H, W) to (B, heads, H * W, channels)."""
    return maps.flatten(2).transpose(1, 2).reshape(maps.shape[0], -1, heads, channels).transpose(1, 2)


@primitive
def rows_last(maps: Tensor, channels: int) -> Tensor:
    """(B, channels, H, W) to (B, H * W, channels)."""
    return maps.flatten(2).transpose(1, 2)


@primitive
def maps_of_last(rows: Tensor, like: Tensor, channels: int) -> Tensor:
    """(B, H * W, channels) to (B, channels, H, W), with H and W of another map."""
    return rows.transpose(1, 2).reshape(rows.shape[0], channels, *like.shape[2:])


@primitive
def maps_like(rows: Tensor, like: Tensor) -> Tensor:
    """(B, C, H * W) to (B, C, H, W), with H and W of another map."""
    return rows.reshape(rows.shape[0], rows.shape[1], *like.shape[2:])


@primitive
def pixel_share(maps: Tensor) -> Tensor:
    """1 / (H * W) in float32, a scalar."""
    return torch.tensor(1.0 / (maps.shape[-2] * maps.shape[-1]), device=maps.device)


@primitive
def square_sum(values: Tensor, dim: int) -> Tensor:
    """Sum of squares over one axis, which stays with size 1."""
    return values.square().sum(dim, keepdim=True)


@primitive
def cast_like(values: Tensor, like: Tensor) -> Tensor:
    """``values`` in the other tensor's type."""
    return values.to(like.dtype)


@primitive
def channel_product(first: Tensor, second: Tensor) -> Tensor:
    """The matrix product, of matrices whose sums are over channels: few enough for half precision."""
    return first @ second


@primitive
def common_source(maps: Tensor) -> Tensor:
    """The same maps, marked as what several convolutions read whose results are combined per element.

    ONNX Runtime keeps the results of convolutions in a blocked layout as long as it can. An element-wise
    operator on two of them may stay in it only if their sizes are known to be equal, and of open sizes it
    knows that only where both descend from one result in that layout. Ordinary maps are none, so the
    exporter puts an operator here that changes nothing: its result is one. (Measured at 48 channels of
    128 x 128: a gated feed-forward part 7 % faster, in spite of the copy.)
    """
    return maps


@primitive
def unshuffle(maps: Tensor, factor: int, channels: int) -> Tensor:
    """(B, channels, H, W) to (B, channels * factor**2, H / factor, W / factor)."""
    return F.pixel_unshuffle(maps, factor)


@primitive
def shift_back(dispersed: Tensor, shifts: Tensor, like: Tensor) -> Tensor:
    """Columns ``shifts[c]`` to ``shifts[c] + W - 1`` of every channel c.

    Args:
        dispersed: (B, C, H, W').
        shifts: (C,), whole numbers.
        like: (B', C, H, W), for W.
    """
    batch, channels, height, _ = dispersed.shape
    width = like.shape[-1]
    columns = shifts.view(-1, 1, 1) + torch.arange(width, device=dispersed.device)
    return dispersed.gather(3, columns.expand(batch, channels, height, width))
