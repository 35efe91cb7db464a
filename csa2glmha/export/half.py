"""Half precision in a graph that was exported plainly, by ONNX Runtime's own converter."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from csa2glmha.core.errors import ExportError
from csa2glmha.core.text import first_line

#: What stays in float32, so that sums over many pixels neither overflow nor lose digits: norms, statistics,
#: maps, and what sizes are computed with.
EXACT = (
    "Div",
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
            proto, keep_io_types=not half_io, op_block_list=blocked
        )
    # It lets through whatever shape inference raises.
    except Exception as error:
        raise ExportError(f"half precision failed: {first_line(error)}; use --precision fp32") from error
    OnnxModel(half).topological_sort()  # casts are put at the end
    del half.graph.value_info[:]  # shapes that the conversion inferred; see clean
    return half
