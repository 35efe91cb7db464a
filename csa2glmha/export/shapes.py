"""Shapes in ONNX: sizes that are open, and what moves, cuts and joins axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from csa2glmha.export.graph import HALF, INT64, GraphBuilder, GraphValue, Operand


class UntranslatableError(Exception):
    """The network does something that this module has no handler for."""


@dataclass(frozen=True)
class AxisSize:
    """The size of one axis of a result."""

    value: GraphValue
    axis: int


@dataclass(frozen=True)
class Shape:
    """The sizes of a result, where code asks for them."""

    value: GraphValue

    def __getitem__(self, index: int | slice) -> AxisSize | tuple[AxisSize, ...]:
        if isinstance(index, int):
            return AxisSize(self.value, range(self.value.rank)[index])
        return tuple(AxisSize(self.value, axis) for axis in range(self.value.rank)[index])


def shape_of(g: GraphBuilder, x: GraphValue, name: str) -> Shape:
    """``x.shape``."""
    if name != "shape":
        raise UntranslatableError(f"attribute {name}")
    return Shape(x)


def item_of(g: GraphBuilder, x: Any, index: Any) -> Any:
    """``x[index]``, of a result or of its sizes."""
    return slice_axes(g, x, index) if isinstance(x, GraphValue) else x[index]


def slice_axes(g: GraphBuilder, x: GraphValue, index: Any) -> GraphValue:
    """``x[..., a:b, c:d]`` and the like; no steps, no new axes."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if parts and parts[0] is Ellipsis:
        parts = [slice(None)] * (x.rank - len(parts) + 1) + parts[1:]
    starts, ends, axes = [], [], []
    for axis, part in enumerate(parts):
        if not isinstance(part, slice) or part.step is not None or not isinstance(part.start, int | None):
            raise UntranslatableError(f"index {part}")
        if part != slice(None):
            starts.append(part.start or 0)
            ends.append(np.iinfo(np.int64).max if part.stop is None else part.stop)
            axes.append(axis)
    return g.op("Slice", x, integers(starts), vector(g, ends), integers(axes)) if axes else x


def sizes_of(g: GraphBuilder, x: GraphValue, start: int, end: int) -> GraphValue:
    """The sizes of some axes of ``x``, side by side."""
    if g.spelling.parts_of_shapes:
        return g.op("Shape", x, dtype=INT64, rank=1, start=start, end=end)
    every = g.op("Shape", x, dtype=INT64, rank=1)
    return g.op("Slice", every, integers([start]), integers([end]), integers([0]), dtype=INT64, rank=1)


def size_value(g: GraphBuilder, size: AxisSize) -> GraphValue:
    """One size, in a vector of one."""
    return sizes_of(g, size.value, size.axis, size.axis + 1)


def vector(g: GraphBuilder, sizes: Sequence[int | AxisSize]) -> Operand:
    """Sizes, some of them open, as one tensor."""
    if not any(isinstance(size, AxisSize) for size in sizes):
        return integers([int(size) for size in sizes if not isinstance(size, AxisSize)])
    parts = [size_value(g, size) if isinstance(size, AxisSize) else integers([size]) for size in sizes]
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, dtype=INT64, rank=1, axis=0)


def reshape(g: GraphBuilder, x: GraphValue, *sizes: int | AxisSize) -> GraphValue:
    """``x.reshape(sizes)``."""
    return g.op("Reshape", x, vector(g, sizes), rank=len(sizes))


def flatten(g: GraphBuilder, x: GraphValue, start: int) -> GraphValue:
    """``x.flatten(start)``."""
    return g.op("Reshape", x, integers([0] * start + [-1]), rank=start + 1)


def tokens(g: GraphBuilder, maps: GraphValue, heads: int, channels: int) -> GraphValue:
    """As :func:`csa2glmha.export.lowering.primitives.tokens`."""
    return g.op("Reshape", maps, integers([0, heads, channels, -1]), rank=4)


def tokens_last(g: GraphBuilder, maps: GraphValue, heads: int, channels: int) -> GraphValue:
    """As :func:`csa2glmha.export.lowering.primitives.tokens_last`."""
    last = g.op("Transpose", maps, perm=[0, 2, 3, 1])
    if heads == 1:
        return g.op("Reshape", last, integers([0, 1, -1, channels]), rank=4)
    split = g.op("Reshape", last, integers([0, -1, heads, channels]), rank=4)
    return g.op("Transpose", split, perm=[0, 2, 1, 3])


def rows_last(g: GraphBuilder, maps: GraphValue, channels: int) -> GraphValue:
    """As :func:`csa2glmha.export.lowering.primitives.rows_last`."""
    last = g.op("Transpose", maps, perm=[0, 2, 3, 1])
    return g.op("Reshape", last, integers([0, -1, channels]), rank=3)


def maps_of_last(g: GraphBuilder, rows: GraphValue, like: GraphValue, channels: int) -> GraphValue:
    """As :func:`csa2glmha.export.lowering.primitives.maps_of_last`."""
    sides = sizes_of(g, like, 2, 4)
    shape = g.op("Concat", integers([0]), sides, integers([channels]), dtype=INT64, rank=1, axis=0)
    return g.op("Transpose", g.op("Reshape", rows, shape, rank=4), perm=[0, 3, 1, 2])


def maps_like(g: GraphBuilder, rows: GraphValue, like: GraphValue) -> GraphValue:
    """As :func:`csa2glmha.export.lowering.primitives.maps_like`."""
    sides = sizes_of(g, like, 2, 4)
    return g.op("Reshape", rows, g.op("Concat", integers([0, 0]), sides, dtype=INT64, rank=1, axis=0), rank=4)


def transpose(g: GraphBuilder, x: GraphValue, first: int, second: int) -> GraphValue:
    """``x.transpose(first, second)``."""
    axes = list(range(x.rank))
    axes[first], axes[second] = axes[second], axes[first]
    return g.op("Transpose", x, perm=axes)


def squeeze(g: GraphBuilder, x: GraphValue, dim: int) -> GraphValue:
    """``x.squeeze(dim)``."""
    return g.op("Squeeze", x, integers([dim % x.rank]), rank=x.rank - 1)


def unsqueeze(g: GraphBuilder, x: GraphValue, dim: int) -> GraphValue:
    """``x.unsqueeze(dim)``."""
    return g.op("Unsqueeze", x, integers([dim % (x.rank + 1)]), rank=x.rank + 1)


def split(g: GraphBuilder, x: GraphValue, sizes: Sequence[int], dim: int = 0) -> list[GraphValue]:
    """``x.split(sizes, dim)``."""
    return g.ops("Split", len(sizes), x, integers(sizes), axis=dim)


def same(g: GraphBuilder, x: GraphValue, *_: Any, **__: Any) -> GraphValue:
    """What changes nothing of a result, ``contiguous`` for one."""
    return x


def common_source(g: GraphBuilder, maps: GraphValue) -> GraphValue:
    """As :func:`csa2glmha.export.lowering.primitives.common_source`."""
    # On GPUs, which half precision is for, there is no such layout.
    return maps if maps.dtype == HALF or not g.spelling.blocks else g.op("MaxPool", maps, kernel_shape=[1, 1])


def reflect_pad(g: GraphBuilder, x: GraphValue, multiple: int) -> GraphValue:
    """As the original: a look-up, since the Pad operator does not reflect more than an image once."""
    for axis in (2, 3):
        size = g.op("Squeeze", size_value(g, AxisSize(x, axis)), integers([0]), rank=0)
        padded = g.op("Mul", g.op("Div", g.op("Add", size, multiple - 1), multiple), multiple)
        position = g.op("Range", integer(0), padded, integer(1), dtype=INT64, rank=1)
        last = g.op("Sub", size, 1)
        period = g.op("Max", g.op("Mul", last, 2), 1)
        distance = g.op("Sub", g.op("Mod", position, period), last)
        # Not Abs: OpenVINO 2026.4 leaves whole numbers negative, and reads beside the image.
        distance = g.op("Max", distance, g.op("Neg", distance))
        x = g.op("Gather", x, g.op("Sub", last, distance), axis=axis, dtype=x.dtype, rank=4)
    return x


def interpolate(
    g: GraphBuilder,
    maps: GraphValue,
    size: Sequence[int | AxisSize] | None = None,
    scale_factor: float | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> GraphValue:
    """``F.interpolate``, bilinear: to a size, or by a factor that is whole or one over a whole number."""
    if mode != "bilinear" or antialias or recompute_scale_factor:
        raise UntranslatableError(f"interpolation {mode}")
    places = "align_corners" if align_corners else "half_pixel"
    if size is not None:
        sides = vector(g, size)
    else:
        sides = sizes_of(g, maps, 2, 4)
        assert scale_factor is not None
        op_type, number = ("Mul", scale_factor) if scale_factor >= 1 else ("Div", 1 / scale_factor)
        if number != int(number):
            raise UntranslatableError(f"interpolation by {scale_factor}")
        if scale_factor < 1 and not align_corners:
            # PyTorch finds the places by the factor, not by the sizes: of an odd side they differ.
            if int(number) & (int(number) - 1):
                raise UntranslatableError(f"interpolation by {scale_factor}, which is rounded")
            scales = np.array([1, 1, scale_factor, scale_factor], dtype=np.float32)
            return g.op("Resize", maps, None, scales, mode="linear", coordinate_transformation_mode=places)
        sides = g.op(op_type, sides, integers([int(number)]))
    sizes = g.op(
        "Concat", vector(g, [AxisSize(maps, 0), AxisSize(maps, 1)]), sides, dtype=INT64, rank=1, axis=0
    )
    return g.op("Resize", maps, None, None, sizes, mode="linear", coordinate_transformation_mode=places)


def replication_pad(g: GraphBuilder, layer: nn.ReplicationPad2d, x: GraphValue) -> GraphValue:
    """Border pixels repeated."""
    left, right, top, bottom = layer.padding
    return g.op("Pad", x, integers([0, 0, top, left, 0, 0, bottom, right]), mode="edge")


def shift_back(g: GraphBuilder, dispersed: GraphValue, shifts: Tensor, like: GraphValue) -> GraphValue:
    """As :func:`csa2glmha.export.lowering.primitives.shift_back`."""
    width = g.op("Squeeze", size_value(g, AxisSize(like, 3)), integers([0]), rank=0)
    columns = g.op(
        "Add", g.op("Range", integer(0), width, integer(1), dtype=INT64, rank=1), shifts.view(1, -1, 1, 1)
    )
    sizes = [AxisSize(dispersed, 0), AxisSize(dispersed, 1), AxisSize(dispersed, 2), AxisSize(like, 3)]
    index = g.op("Expand", columns, vector(g, sizes), rank=4)
    return g.op("GatherElements", dispersed, index, axis=3)


def integer(value: int) -> np.ndarray:
    """A constant scalar."""
    return np.array(value, dtype=np.int64)


def integers(values: Sequence[int]) -> np.ndarray:
    """A constant vector."""
    return np.array(values, dtype=np.int64)
