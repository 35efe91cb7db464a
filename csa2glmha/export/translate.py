"""From a symbolic trace to ONNX: one handler per function, method or module that the networks use.

The trace is that of ``torch.fx``: it records the network's own code, with its shapes open, in a fraction of
a second. What depends on no input is computed now, in PyTorch, and becomes a constant.
"""

from __future__ import annotations

import contextlib
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from csa2glmha.export.graph import FLOAT, HALF, INT64, GraphBuilder, Operand, Value, element_type
from csa2glmha.export.lowering import primitives
from csa2glmha.networks import RestorationModel, reflect_pad_to_multiple

#: The first opset with a GELU operator.
LOWEST_OPSET = 20


class UntranslatableError(Exception):
    """The network does something that this module has no handler for."""


@contextlib.contextmanager
def _sizes_are_open() -> Iterator[None]:
    """Let networks know that sizes are symbols, as PyTorch's own exporter does."""
    known = torch.compiler.is_exporting
    torch.compiler.is_exporting = lambda: True
    try:
        yield
    finally:
        torch.compiler.is_exporting = known


def translate(
    network: RestorationModel, shapes: Sequence[Sequence[int | str]], opset: int, half_io: bool = False
) -> onnx.ModelProto:
    """The network as an ONNX model.

    Args:
        network: in eval mode; weights in float32, or those of convolutions in float16.
        shapes: of the inputs, with names for open sizes. The output has the first one's open sizes.
        opset: version of the ONNX operators, :data:`LOWEST_OPSET` or later.
        half_io: inputs and output are float16, not float32.

    Raises:
        UntranslatableError: as its name says.
    """
    try:
        # A network may check its inputs' sizes; they are open here.
        with _sizes_are_open():
            tracer = fx.Tracer(autowrap_functions=(reflect_pad_to_multiple,))
            graph = tracer.trace(network, concrete_args=_left_out(network))
    except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
        raise UntranslatableError(f"no symbolic trace: {error}") from error
    inputs = dict(zip(network.input_names, shapes, strict=True))
    emitter = _Emitter(fx.GraphModule(network, graph))
    io_type = HALF if half_io else FLOAT
    values = [Value(name, io_type, len(shape)) for name, shape in inputs.items()]
    half = any(parameter.dtype == torch.float16 for parameter in network.parameters())
    try:
        with torch.no_grad():
            output = emitter.run(*(emitter.builder.cast(value, HALF if half else FLOAT) for value in values))
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        # A handler, or PyTorch in its place, met arguments that it does not know.
        raise UntranslatableError(f"not translated: {error}") from error
    if not isinstance(output, Value):
        raise UntranslatableError("the output does not depend on the input")
    output_shape = [shapes[0][0], network.out_channels, *shapes[0][2:]]
    return emitter.builder.model(inputs, emitter.builder.cast(output, io_type), output_shape, opset)


def _left_out(network: RestorationModel) -> dict[str, None]:
    """The arguments that the network has beyond its inputs, such as a mask when it has one baked in."""
    arguments = list(inspect.signature(network.forward).parameters)
    return dict.fromkeys(arguments[len(network.input_names) :])


@dataclass(frozen=True)
class Size:
    """The size of one axis of a result."""

    value: Value
    axis: int


@dataclass(frozen=True)
class Shape:
    """The sizes of a result, where code asks for them."""

    value: Value

    def __getitem__(self, index: int | slice) -> Size | tuple[Size, ...]:
        if isinstance(index, int):
            return Size(self.value, range(self.value.rank)[index])
        return tuple(Size(self.value, axis) for axis in range(self.value.rank)[index])


class _Emitter(fx.Interpreter):
    """Runs a trace with :class:`Value` in place of tensors."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.builder = GraphBuilder()

    def run_node(self, n: fx.Node) -> Any:
        # Names of nodes begin with the module that makes them, so that a profile can be read layer by layer.
        modules = n.meta.get("nn_module_stack", {})
        self.builder.scope = next((path for path, _ in reversed(modules.values())), "") or n.name
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _symbolic(args, kwargs):
            return super().call_function(target, args, kwargs)
        handler = FUNCTIONS.get(target)
        if handler is None:
            raise UntranslatableError(f"function {getattr(target, '__name__', target)}")
        return handler(self.builder, *args, **kwargs)

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _symbolic(args, kwargs):
            return super().call_method(target, args, kwargs)
        handler = METHODS.get(target)
        if handler is None:
            raise UntranslatableError(f"method {target}")
        return handler(self.builder, *args, **kwargs)

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not _symbolic(args, kwargs):
            return super().call_module(target, args, kwargs)
        handler = MODULES.get(type(module))
        if handler is None:
            raise UntranslatableError(f"module {type(module).__name__}")
        return handler(self.builder, module, *args)


def _symbolic(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    found = []
    fx.node.map_aggregate((args, kwargs), lambda item: found.append(isinstance(item, (Value, Size, Shape))))
    return any(found)


# --- Arithmetic -------------------------------------------------------------------------------------


def _binary(op_type: str) -> Callable[..., Value]:
    def handler(g: GraphBuilder, a: Operand, b: Operand) -> Value:
        return g.op(op_type, a, b, rank=max(_rank(a), _rank(b)))

    return handler


def _unary(op_type: str, **attributes: Any) -> Callable[..., Value]:
    def handler(g: GraphBuilder, x: Value) -> Value:
        return g.op(op_type, x, **attributes)

    return handler


def _reduce(op_type: str) -> Callable[..., Value]:
    def handler(g: GraphBuilder, x: Value, dim: int | Sequence[int], keepdim: bool = False) -> Value:
        axes = [dim] if isinstance(dim, int) else list(dim)
        rank = x.rank if keepdim else x.rank - len(axes)
        return g.op(op_type, x, _integers([axis % x.rank for axis in axes]), keepdims=int(keepdim), rank=rank)

    return handler


def _square(g: GraphBuilder, x: Value) -> Value:
    return g.op("Mul", x, x)


def _rsqrt(g: GraphBuilder, x: Value) -> Value:
    return g.op("Reciprocal", g.op("Sqrt", x))


def _clamp_min(g: GraphBuilder, x: Value, low: float) -> Value:
    return g.op("Max", x, low)


def _softmax(g: GraphBuilder, x: Value, dim: int) -> Value:
    return g.op("Softmax", x, axis=dim)


def _leaky_relu(g: GraphBuilder, x: Value, negative_slope: float = 0.01, **_: Any) -> Value:
    return g.op("LeakyRelu", x, alpha=negative_slope)


def _gelu(g: GraphBuilder, x: Value, approximate: str = "none") -> Value:
    return g.op("Gelu", x, approximate=approximate)


def _float(g: GraphBuilder, x: Value) -> Value:
    return g.cast(x, FLOAT)


def _cast_like(g: GraphBuilder, x: Value | Tensor, like: Value) -> Value | Tensor:
    if isinstance(x, Tensor):
        return x.to(torch.float16 if like.dtype == HALF else torch.float32)
    return g.cast(x, like.dtype)


def _square_sum(g: GraphBuilder, x: Value, dim: int) -> Value:
    return g.op("ReduceSumSquare", x, _integers([dim % x.rank]), keepdims=1)


def _pixel_share(g: GraphBuilder, maps: Value) -> Value:
    sizes = g.op("Shape", maps, dtype=INT64, rank=1, start=2)
    count = g.op("ReduceProd", sizes, keepdims=0, rank=0)
    return g.op("Reciprocal", g.cast(count, FLOAT))


# --- Shapes -----------------------------------------------------------------------------------------


def _getattr(g: GraphBuilder, x: Value, name: str) -> Shape:
    if name != "shape":
        raise UntranslatableError(f"attribute {name}")
    return Shape(x)


def _getitem(g: GraphBuilder, x: Any, index: Any) -> Any:
    return _slice(g, x, index) if isinstance(x, Value) else x[index]


def _slice(g: GraphBuilder, x: Value, index: Any) -> Value:
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
    return g.op("Slice", x, _integers(starts), _vector(g, ends), _integers(axes)) if axes else x


def _size(g: GraphBuilder, size: Size) -> Value:
    return g.op("Shape", size.value, dtype=INT64, rank=1, start=size.axis, end=size.axis + 1)


def _vector(g: GraphBuilder, sizes: Sequence[int | Size]) -> Operand:
    """Sizes, some of them open, as one tensor."""
    if not any(isinstance(size, Size) for size in sizes):
        return _integers([int(size) for size in sizes if not isinstance(size, Size)])
    parts = [_size(g, size) if isinstance(size, Size) else _integers([size]) for size in sizes]
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, dtype=INT64, rank=1, axis=0)


def _reshape(g: GraphBuilder, x: Value, *sizes: int | Size) -> Value:
    return g.op("Reshape", x, _vector(g, sizes), rank=len(sizes))


def _flatten(g: GraphBuilder, x: Value, start: int) -> Value:
    return g.op("Reshape", x, _integers([0] * start + [-1]), rank=start + 1)


def _tokens(g: GraphBuilder, maps: Value, heads: int, channels: int) -> Value:
    return g.op("Reshape", maps, _integers([0, heads, channels, -1]), rank=4)


def _maps_like(g: GraphBuilder, rows: Value, like: Value) -> Value:
    sizes = g.op("Shape", like, dtype=INT64, rank=1, start=2)
    return g.op(
        "Reshape", rows, g.op("Concat", _integers([0, 0]), sizes, dtype=INT64, rank=1, axis=0), rank=4
    )


def _transpose(g: GraphBuilder, x: Value, first: int, second: int) -> Value:
    axes = list(range(x.rank))
    axes[first], axes[second] = axes[second], axes[first]
    return g.op("Transpose", x, perm=axes)


def _squeeze(g: GraphBuilder, x: Value, dim: int) -> Value:
    return g.op("Squeeze", x, _integers([dim % x.rank]), rank=x.rank - 1)


def _unsqueeze(g: GraphBuilder, x: Value, dim: int) -> Value:
    return g.op("Unsqueeze", x, _integers([dim % (x.rank + 1)]), rank=x.rank + 1)


def _split(g: GraphBuilder, x: Value, sizes: Sequence[int], dim: int = 0) -> list[Value]:
    return g.ops("Split", len(sizes), x, _integers(sizes), axis=dim)


def _cat(g: GraphBuilder, parts: Sequence[Value], dim: int = 0) -> Value:
    return g.op("Concat", *parts, axis=dim)


def _same(g: GraphBuilder, x: Value, *_: Any, **__: Any) -> Value:
    return x


def _common_source(g: GraphBuilder, maps: Value) -> Value:
    # On GPUs, which half precision is for, there is no such layout.
    return maps if maps.dtype == HALF else g.op("MaxPool", maps, kernel_shape=[1, 1])


def _reflect_pad(g: GraphBuilder, x: Value, multiple: int) -> Value:
    """As the original: a look-up, since the Pad operator does not reflect more than an image once."""
    for axis in (2, 3):
        size = _size(g, Size(x, axis))
        size = g.op("Squeeze", size, _integers([0]), rank=0)
        padded = g.op("Mul", g.op("Div", g.op("Add", size, multiple - 1), multiple), multiple)
        position = g.op("Range", _integer(0), padded, _integer(1), dtype=INT64, rank=1)
        last = g.op("Sub", size, 1)
        period = g.op("Max", g.op("Mul", last, 2), 1)
        distance = g.op("Abs", g.op("Sub", g.op("Mod", position, period), last))
        x = g.op("Gather", x, g.op("Sub", last, distance), axis=axis, dtype=x.dtype, rank=4)
    return x


def _shift_back(g: GraphBuilder, dispersed: Value, shifts: Tensor, like: Value) -> Value:
    width = g.op("Squeeze", _size(g, Size(like, 3)), _integers([0]), rank=0)
    columns = g.op(
        "Add", g.op("Range", _integer(0), width, _integer(1), dtype=INT64, rank=1), shifts.view(1, -1, 1, 1)
    )
    sizes = [Size(dispersed, 0), Size(dispersed, 1), Size(dispersed, 2), Size(like, 3)]
    index = g.op("Expand", columns, _vector(g, sizes), rank=4)
    return g.op("GatherElements", dispersed, index, axis=3)


# --- Layers -----------------------------------------------------------------------------------------


def _conv(g: GraphBuilder, layer: nn.Conv2d, x: Value) -> Value:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        raise UntranslatableError(f"padding {layer.padding_mode}, {layer.padding}")
    return _convolve(g, "Conv", layer, x, layer.padding)


def _conv_transpose(g: GraphBuilder, layer: nn.ConvTranspose2d, x: Value) -> Value:
    if any(layer.output_padding) or isinstance(layer.padding, str):
        raise UntranslatableError(f"padding {layer.padding}, {layer.output_padding}")
    return _convolve(g, "ConvTranspose", layer, x, layer.padding)


def _convolve(
    g: GraphBuilder, op_type: str, layer: nn.Conv2d | nn.ConvTranspose2d, x: Value, padding: Sequence[int]
) -> Value:
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


def _linear(g: GraphBuilder, layer: nn.Linear, x: Value) -> Value:
    """On (B, C)."""
    if x.rank != 2:
        raise UntranslatableError("Linear on more than two axes")
    weights = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return g.op("Gemm", x, *weights, transB=1)


def _gelu_layer(g: GraphBuilder, layer: nn.GELU, x: Value) -> Value:
    return _gelu(g, x, layer.approximate)


def _pixel_shuffle(g: GraphBuilder, layer: nn.PixelShuffle, x: Value) -> Value:
    return g.op("DepthToSpace", x, blocksize=layer.upscale_factor, mode="CRD")


def _unshuffle(g: GraphBuilder, x: Value, factor: int, channels: int) -> Value:
    # The operator lists the channels of one place in a block together, PyTorch the places of one channel.
    order = np.arange(channels * factor**2).reshape(factor**2, channels).T.reshape(-1)
    return g.op("Gather", g.op("SpaceToDepth", x, blocksize=factor), order, axis=1, dtype=x.dtype, rank=4)


def _integer(value: int) -> np.ndarray:
    return np.array(value, dtype=np.int64)


def _integers(values: Sequence[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def _rank(operand: Operand) -> int:
    if isinstance(operand, Value):
        return operand.rank
    return operand.ndim if isinstance(operand, (Tensor, np.ndarray)) else 0


FUNCTIONS: dict[Any, Callable[..., Any]] = {
    operator.add: _binary("Add"),
    operator.sub: _binary("Sub"),
    operator.mul: _binary("Mul"),
    operator.truediv: _binary("Div"),
    operator.matmul: _binary("MatMul"),
    torch.matmul: _binary("MatMul"),
    operator.getitem: _getitem,
    getattr: _getattr,
    torch.cat: _cat,
    torch.sigmoid: _unary("Sigmoid"),
    F.gelu: _gelu,
    F.leaky_relu: _leaky_relu,
    reflect_pad_to_multiple: _reflect_pad,
    primitives.tokens: _tokens,
    primitives.maps_like: _maps_like,
    primitives.pixel_share: _pixel_share,
    primitives.square_sum: _square_sum,
    primitives.cast_like: _cast_like,
    primitives.common_source: _common_source,
    primitives.unshuffle: _unshuffle,
    primitives.shift_back: _shift_back,
}
# With a constant tensor on the left, operators are recorded as its methods.
METHODS: dict[str, Callable[..., Any]] = {
    "add": _binary("Add"),
    "matmul": _binary("MatMul"),
    "mul": _binary("Mul"),
    "clamp_min": _clamp_min,
    "contiguous": _same,
    "flatten": _flatten,
    "float": _float,
    "mean": _reduce("ReduceMean"),
    "reshape": _reshape,
    "rsqrt": _rsqrt,
    "softmax": _softmax,
    "split": _split,
    "sqrt": _unary("Sqrt"),
    "square": _square,
    "squeeze": _squeeze,
    "sum": _reduce("ReduceSum"),
    "transpose": _transpose,
    "unsqueeze": _unsqueeze,
    "view": _reshape,
}
MODULES: dict[type[nn.Module], Callable[..., Any]] = {
    nn.Conv2d: _conv,
    nn.ConvTranspose2d: _conv_transpose,
    nn.GELU: _gelu_layer,
    nn.Linear: _linear,
    nn.PixelShuffle: _pixel_shuffle,
}
