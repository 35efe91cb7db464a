"""What TensorRT's ONNX parser takes, by its published tables, and the sizes it is to be built for."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import TensorProto

from csa2glmha.export.graph import opset_of
from csa2glmha.networks import RestorationModel

_FLOATS = frozenset((TensorProto.FLOAT, TensorProto.FLOAT16))
# TensorRT 8.6 turns INT64 into INT32 and says so; 10 has both.
_WHOLE = frozenset((TensorProto.INT32, TensorProto.INT64))
_NUMBERS, _ALL = _FLOATS | _WHOLE, _FLOATS | _WHOLE | {TensorProto.BOOL}

#: From docs/operators.md of onnx-tensorrt, branch 8.6-GA: what our graphs may hold, and the types of the
#: first operand that it has kernels for. The tables of 10.0 and 10.1 have all of these and more.
OPERATORS_8_6: dict[str, frozenset[int]] = {
    **dict.fromkeys(
        (
            *("Atan", "AveragePool", "Clip", "Conv", "ConvTranspose", "Cos", "Erf", "Exp", "Gemm"),
            *("GlobalAveragePool", "LayerNormalization", "LeakyRelu", "MatMul", "MaxPool", "PRelu", "Pow"),
            *("Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"),
            *("ReduceSumSquare", "Relu", "Resize", "Sigmoid", "Sin", "Softmax", "Sqrt", "Tanh"),
        ),
        _FLOATS,
    ),
    **dict.fromkeys(
        (
            *("Abs", "Add", "DepthToSpace", "Div", "Equal", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Pad"),
            *("Range", "SpaceToDepth", "Sub"),
        ),
        _NUMBERS,
    ),
    **dict.fromkeys(
        (
            *("Cast", "Concat", "Constant", "Expand", "Gather", "GatherElements", "Identity", "Reshape"),
            *("Shape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
        ),
        _ALL,
    ),
}
HIGHEST_OPSET_8_6 = 17
#: Where a file's metadata name the sizes.
PROFILE = "tensorrt_profile"
#: Tells trtexec 10 to compute in the types of the file, as 11 does unasked. With --fp16 in its place it may
#: take half precision for sums over pixels, too, where they overflow.
STRONGLY_TYPED = "--stronglyTyped"
#: Heights and widths that an engine for open sizes takes at least, is fastest at, and takes at most.
_SIDES = {"min": 64, "opt": 256, "max": 1024}


def refused(proto: onnx.ModelProto) -> list[str]:
    """What TensorRT 8.6's parser would not take of a graph, one line each."""
    found = []
    opset = opset_of(proto) or 0
    if opset > HIGHEST_OPSET_8_6:
        found.append(f"opset {opset}, where it knows {HIGHEST_OPSET_8_6}")
    types = _types(onnx.shape_inference.infer_shapes(proto).graph)
    for node in proto.graph.node:
        taken = OPERATORS_8_6.get(node.op_type)
        kind = types.get(node.input[0]) if node.input else None
        if taken is None:
            found.append(node.op_type)
        elif kind is not None and kind not in taken:
            found.append(f"{node.op_type} of {TensorProto.DataType.Name(kind)}")
        elif node.op_type == "Shape" and node.attribute:
            found.append("Shape of some axes")
    return sorted(set(found))


def _types(graph: onnx.GraphProto) -> dict[str, int]:
    values: Iterable[onnx.ValueInfoProto] = (*graph.input, *graph.value_info, *graph.output)
    constants = {each.name: int(each.data_type) for each in graph.initializer}
    return constants | {each.name: int(each.type.tensor_type.elem_type) for each in values}


def profile_of(network: RestorationModel) -> str:
    """The sizes that an engine for a file of open sizes is built for, as trtexec is told them."""
    parts = []
    for kind, side in _SIDES.items():
        shapes = network.input_shapes(*(network.fixed_size or (side, side)), 1)
        named = zip(network.input_names, shapes, strict=True)
        parts.append(f"--{kind}Shapes=" + ",".join(f"{name}:{'x'.join(map(str, s))}" for name, s in named))
    return " ".join(parts)
