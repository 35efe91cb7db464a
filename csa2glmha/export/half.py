"""Half precision in a graph that was exported plainly, by ONNX Runtime's own converter."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from csa2glmha.core.errors import ExportError
from csa2glmha.core.text import first_line
from csa2glmha.export.graph import types_of

#: What stays in float32, so that sums over many pixels neither overflow nor lose digits: norms, statistics,
#: maps, and what sizes are computed with.
EXACT = (
    "Div",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Pow",
    "Range",
    "Reciprocal",
    "ReduceL2",
    "ReduceMean",
    "ReduceSum",
    "ReduceSumSquare",
    "Resize",
    "Softmax",
    "Sqrt",
)


#: What logits go through between a product and a softmax.
_ON_THE_WAY = frozenset({"Add", "Clip", "Max", "Min", "Mul", "Reshape", "Sub", "Transpose", "Where"})


def _exact_nodes(proto: onnx.ModelProto) -> list[str]:
    """Names of further nodes that stay in float32.

    They are products of two results, whose sums may be over pixels, what is done with them on the way to a
    softmax, and casts from whole numbers: 256 x 256 pixels are more than half precision goes up to.
    """
    graph, types = proto.graph, types_of(proto)
    weights = {each.name for each in graph.initializer}
    constants = weights | {name for node in graph.node if node.op_type == "Constant" for name in node.output}
    floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    made_by = {name: node for node in graph.node for name in node.output}
    exact = {
        node.name
        for node in graph.node
        if (node.op_type == "MatMul" and constants.isdisjoint(node.input))
        or (node.op_type == "Cast" and types.get(node.input[0]) not in floats)
    }
    waiting = [name for node in graph.node if node.op_type == "Softmax" for name in node.input]
    while waiting:
        before = made_by.get(waiting.pop())
        if before is not None and before.op_type in _ON_THE_WAY and before.name not in exact:
            exact.add(before.name)
            waiting.extend(before.input)
    return sorted(exact)


def in_half(proto: onnx.ModelProto, half_io: bool) -> onnx.ModelProto:
    """The graph with weights and maps in float16.

    Args:
        proto: in float32; it may be changed.
        half_io: inputs and output are float16, too.

    Raises:
        ExportError: ONNX Runtime's converter cannot.
    """
    blocked = [*DEFAULT_OP_BLOCK_LIST, *EXACT]
    try:
        half: onnx.ModelProto = convert_float_to_float16(
            proto, keep_io_types=not half_io, op_block_list=blocked, node_block_list=_exact_nodes(proto)
        )
    # It lets through whatever shape inference raises.
    except Exception as error:
        raise ExportError(f"half precision failed: {first_line(error)}; use --precision fp32") from error
    _remove_round_trips(half)
    OnnxModel(half).topological_sort()  # casts are put at the end
    del half.graph.value_info[:]  # shapes that the conversion inferred; see clean
    return half


def _remove_round_trips(half: onnx.ModelProto) -> None:
    """Let what stays in float32 read another such result itself, not what is left of it in float16."""
    graph = half.graph
    types = types_of(half)
    casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    exact = {
        wide: source
        for wide, narrow in casts.items()
        if types.get(wide) == onnx.TensorProto.FLOAT
        and types.get(narrow) == onnx.TensorProto.FLOAT16
        and types.get(source := casts.get(narrow, "")) == onnx.TensorProto.FLOAT
    }
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = exact.get(name, name)
    outputs = {each.name for each in graph.output}
    # A cast to float16 may be read by nothing but a cast back.
    for _ in range(2):
        read = {name for node in graph.node for name in node.input} | outputs
        kept = [node for node in graph.node if node.op_type != "Cast" or node.output[0] in read]
        del graph.node[:]
        graph.node.extend(kept)
