"""What each function, method or module that the networks use is in ONNX: one handler for each."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from csa2glmha.export import shapes
from csa2glmha.export.graph import BOOL, FLOAT, HALF, GraphBuilder, GraphValue, Operand, element_type
from csa2glmha.export.lowering import primitives
from csa2glmha.export.shapes import AxisSize, UntranslatableError, integers
from csa2glmha.networks import reflect_pad_to_multiple
from csa2glmha.networks.skipped import Skipped

#: Reductions that give one of the values.
_EXTREMES = ("ReduceMax", "ReduceMin")
#: In place of a divisor of zero.
_TINY = 1e-30


def _binary(op_type: str) -> Callable[..., GraphValue]:
    def handler(g: GraphBuilder, a: Operand, b: Operand) -> GraphValue:
        a, b = _promoted(g, (a, b))
        return g.op(op_type, a, b, rank=max(_rank(a), _rank(b)))

    return handler


def _promoted(g: GraphBuilder, operands: Sequence[Operand]) -> list[Operand]:
    """Operands of one type: of half precision and float32 it is float32, as in PyTorch."""
    types = {each.dtype for each in operands if isinstance(each, GraphValue)}
    if types != {HALF, FLOAT}:
        return list(operands)
    return [g.cast(each, FLOAT) if isinstance(each, GraphValue) else each for each in operands]


def _matmul(g: GraphBuilder, a: Operand, b: Operand) -> GraphValue:
    """A product; of two results in float32, since its sums may be over pixels."""
    if isinstance(a, GraphValue) and isinstance(b, GraphValue):
        a, b = g.cast(a, FLOAT), g.cast(b, FLOAT)
    return _binary("MatMul")(g, a, b)


def _add(g: GraphBuilder, a: Operand, b: Operand) -> Operand:
    """A sum; of a skipped layer's zero and something else it is that."""
    for zero, other in ((a, b), (b, a)):
        if isinstance(zero, Tensor) and not zero.ndim and not zero.item():
            return other
    return _binary("Add")(g, a, b)


def _unary(op_type: str, **attributes: Any) -> Callable[..., GraphValue]:
    def handler(g: GraphBuilder, x: GraphValue) -> GraphValue:
        return g.op(op_type, x, **attributes)

    return handler


def _reduce(op_type: str) -> Callable[..., GraphValue]:
    def handler(
        g: GraphBuilder, x: GraphValue, dim: int | Sequence[int], keepdim: bool = False
    ) -> GraphValue:
        axes = [axis % x.rank for axis in ([dim] if isinstance(dim, int) else dim)]
        if op_type in _EXTREMES:
            return _reduced(g, op_type, x, axes, keepdim)
        # Sums may be over pixels, too many for half precision; a mean is no larger than what it is of.
        result = _reduced(g, op_type, g.cast(x, FLOAT), axes, keepdim)
        return g.cast(result, x.dtype) if op_type == "ReduceMean" else result

    return handler


def _reduced(g: GraphBuilder, op_type: str, x: GraphValue, axes: list[int], keepdim: bool) -> GraphValue:
    rank = x.rank if keepdim else x.rank - len(axes)
    # Axes came as an attribute before opset 18, those of the plain sum before 13.
    if g.opset < 18 and op_type != "ReduceSum":
        return g.op(op_type, x, axes=axes, keepdims=int(keepdim), rank=rank)
    return g.op(op_type, x, integers(axes), keepdims=int(keepdim), rank=rank)


def _square(g: GraphBuilder, x: GraphValue) -> GraphValue:
    return g.op("Mul", x, x)


def _rsqrt(g: GraphBuilder, x: GraphValue) -> GraphValue:
    return g.op("Reciprocal", g.op("Sqrt", x))


def _clamp_min(g: GraphBuilder, x: GraphValue, low: float) -> GraphValue:
    return g.op("Max", x, low)


def _clamp(g: GraphBuilder, x: GraphValue, low: float, high: float) -> GraphValue:
    return g.op("Min", g.op("Max", x, low), high)


def _equal(g: GraphBuilder, a: GraphValue, b: Operand) -> GraphValue:
    return g.op("Equal", a, b, dtype=BOOL)


def _where(g: GraphBuilder, condition: GraphValue, a: GraphValue, b: GraphValue) -> GraphValue:
    return g.op("Where", condition, a, b, dtype=a.dtype)


def _atan2(g: GraphBuilder, y: GraphValue, x: GraphValue) -> GraphValue:
    """The arc tangent, which is right where x > 0; half a turn is missing elsewhere."""
    dtype, y, x = x.dtype, g.cast(y, FLOAT), g.cast(x, FLOAT)
    divisor = g.op("Where", _equal(g, x, 0.0), _TINY, x, dtype=FLOAT)
    half_turn = g.op("Where", g.op("Less", y, 0.0, dtype=BOOL), -math.pi, math.pi, dtype=FLOAT)
    turn = g.op("Where", g.op("Less", x, 0.0, dtype=BOOL), half_turn, 0.0, dtype=FLOAT)
    return g.cast(g.op("Add", g.op("Atan", g.op("Div", y, divisor)), turn), dtype)


def _softmax(g: GraphBuilder, x: GraphValue, dim: int) -> GraphValue:
    return g.cast(g.op("Softmax", g.cast(x, FLOAT), axis=dim), x.dtype)


def _leaky_relu(g: GraphBuilder, x: GraphValue, negative_slope: float = 0.01, **_: Any) -> GraphValue:
    return g.op("LeakyRelu", x, alpha=negative_slope)


def _gelu(g: GraphBuilder, x: GraphValue, approximate: str = "none") -> GraphValue:
    if g.opset >= 20:
        return g.op("Gelu", x, approximate=approximate)
    if approximate != "none":
        raise UntranslatableError(f"GELU by {approximate} before opset 20")
    half, bend = g.op("Mul", x, 0.5), g.op("Erf", g.op("Mul", x, 0.5**0.5))
    return g.op("Mul", half, g.op("Add", bend, 1.0))


def _float(g: GraphBuilder, x: GraphValue) -> GraphValue:
    return g.cast(x, FLOAT)


def _cast_like(g: GraphBuilder, x: GraphValue | Tensor, like: GraphValue) -> GraphValue | Tensor:
    if isinstance(x, Tensor):
        return x.to(torch.float16 if like.dtype == HALF else torch.float32)
    return g.cast(x, like.dtype)


def _square_sum(g: GraphBuilder, x: GraphValue, dim: int) -> GraphValue:
    return _reduced(g, "ReduceSumSquare", x, [dim % x.rank], keepdim=True)


def _pixel_share(g: GraphBuilder, maps: GraphValue) -> GraphValue:
    # Not the product of a vector: TensorRT 8.6 has that of floating-point numbers only.
    height, width = (
        g.op("Squeeze", shapes.size_value(g, AxisSize(maps, axis)), integers([0]), rank=0) for axis in (2, 3)
    )
    return g.op("Reciprocal", g.cast(g.op("Mul", height, width), FLOAT))


def _conv(g: GraphBuilder, layer: nn.Conv2d, x: GraphValue) -> GraphValue:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UntranslatableError(f"padding {layer.padding_mode}, {layer.padding}")
    return _convolve(g, "Conv", layer, x, layer.padding)


def _conv_transpose(g: GraphBuilder, layer: nn.ConvTranspose2d, x: GraphValue) -> GraphValue:
    if any(layer.output_padding) or isinstance(layer.padding, str):
        raise UntranslatableError(f"padding {layer.padding}, {layer.output_padding}")
    return _convolve(g, "ConvTranspose", layer, x, layer.padding)


def _convolve(
    g: GraphBuilder,
    op_type: str,
    layer: nn.Conv2d | nn.ConvTranspose2d,
    x: GraphValue,
    padding: Sequence[int],
) -> GraphValue:
    x = g.cast(x, element_type(layer.weight.dtype))
    weights = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return g.op(
        op_type,
        x,
        *weights,
        kernel_shape=list(layer.kernel_size),
        strides=list(layer.stride),
        dilations=list(layer.dilation),
        pads=[*padding, *padding],
        group=layer.groups,
    )


def _linear(g: GraphBuilder, layer: nn.Linear, x: GraphValue) -> GraphValue:
    """On (B, C)."""
    if x.rank != 2:
        raise UntranslatableError("Linear on more than two axes")
    weights = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return g.op("Gemm", x, *weights, transB=1)


def _gelu_layer(g: GraphBuilder, layer: nn.GELU, x: GraphValue) -> GraphValue:
    return _gelu(g, x, layer.approximate)


def _prelu(g: GraphBuilder, layer: nn.PReLU, x: GraphValue) -> GraphValue:
    return g.op("PRelu", x, layer.weight.view(-1, 1, 1))


def _identity(g: GraphBuilder, layer: nn.Identity, x: GraphValue) -> GraphValue:
    return x


def _skipped(g: GraphBuilder, layer: Skipped, *inputs: GraphValue) -> Tensor:
    return torch.zeros(())


def _pixel_shuffle(g: GraphBuilder, layer: nn.PixelShuffle, x: GraphValue) -> GraphValue:
    return g.op("DepthToSpace", x, blocksize=layer.upscale_factor, mode="CRD")


def _cat(g: GraphBuilder, parts: Sequence[GraphValue], dim: int = 0) -> GraphValue:
    return g.op("Concat", *_promoted(g, parts), axis=dim)


def _unshuffle(g: GraphBuilder, x: GraphValue, factor: int, channels: int) -> GraphValue:
    # The operator lists the channels of one place in a block together, PyTorch the places of one channel.
    order = np.arange(channels * factor**2).reshape(factor**2, channels).T.reshape(-1)
    return g.op("Gather", g.op("SpaceToDepth", x, blocksize=factor), order, axis=1, dtype=x.dtype, rank=4)


def _rank(operand: Operand) -> int:
    if isinstance(operand, GraphValue):
        return operand.rank
    return operand.ndim if isinstance(operand, (Tensor, np.ndarray)) else 0


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.add: _add,
    operator.sub: _binary("Sub"),
    operator.mul: _binary("Mul"),
    operator.truediv: _binary("Div"),
    operator.matmul: _matmul,
    torch.matmul: _matmul,
    operator.getitem: shapes.item_of,
    getattr: shapes.shape_of,
    torch.cat: _cat,
    operator.pow: _binary("Pow"),
    torch.atan2: _atan2,
    torch.cos: _unary("Cos"),
    torch.eq: _equal,
    torch.maximum: _binary("Max"),
    torch.sigmoid: _unary("Sigmoid"),
    torch.sin: _unary("Sin"),
    torch.sqrt: _unary("Sqrt"),
    torch.tanh: _unary("Tanh"),
    torch.where: _where,
    F.gelu: _gelu,
    F.interpolate: shapes.interpolate,
    F.leaky_relu: _leaky_relu,
    reflect_pad_to_multiple: shapes.reflect_pad,
    primitives.tokens: shapes.tokens,
    primitives.tokens_last: shapes.tokens_last,
    primitives.rows_last: shapes.rows_last,
    primitives.maps_of_last: shapes.maps_of_last,
    primitives.maps_like: shapes.maps_like,
    primitives.pixel_share: _pixel_share,
    primitives.square_sum: _square_sum,
    primitives.cast_like: _cast_like,
    primitives.channel_product: _binary("MatMul"),
    primitives.common_source: shapes.common_source,
    primitives.unshuffle: _unshuffle,
    primitives.shift_back: shapes.shift_back,
}
# With a constant tensor on the left, operators are recorded as its methods.
METHODS: dict[str, Callable[..., Any]] = {
    "add": _add,
    "matmul": _matmul,
    "mul": _binary("Mul"),
    "abs": _unary("Abs"),
    "amax": _reduce("ReduceMax"),
    "amin": _reduce("ReduceMin"),
    "clamp": _clamp,
    "clamp_min": _clamp_min,
    "contiguous": shapes.same,
    "flatten": shapes.flatten,
    "float": _float,
    "mean": _reduce("ReduceMean"),
    "relu": _unary("Relu"),
    "reshape": shapes.reshape,
    "rsqrt": _rsqrt,
    "softmax": _softmax,
    "split": shapes.split,
    "sqrt": _unary("Sqrt"),
    "square": _square,
    "squeeze": shapes.squeeze,
    "sum": _reduce("ReduceSum"),
    "transpose": shapes.transpose,
    "unsqueeze": shapes.unsqueeze,
    "view": shapes.reshape,
}
MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv_transpose,
    nn.GELU: _gelu_layer,
    nn.Identity: _identity,
    nn.Linear: _linear,
    nn.PixelShuffle: _pixel_shuffle,
    nn.PReLU: _prelu,
    nn.ReplicationPad2d: shapes.replication_pad,
    Skipped: _skipped,
}
