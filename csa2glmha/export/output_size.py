"""Height and width of the output, for programs that ask ONNX's shape inference for them.

chaiNNer's loader gives the input a fixed size, runs ``onnx.shape_inference.infer_shapes`` and takes the scale
from what it finds; vs-mlrt likewise. Sizes that are computed in the graph, as those of padding and cropping
are, mean nothing to it: it follows results only from one operator to the next. An addition is enough: what is
added has the size of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import onnx
from onnx import helper, numpy_helper

from csa2glmha.networks import RestorationModel
from csa2glmha.networks.model import LOGITS


def tie_output(proto: onnx.ModelProto, network: RestorationModel) -> onnx.ModelProto:
    """The graph with an output whose height and width follow from the input's.

    Args:
        proto: of any size; it may be changed.
        network: that it is of.

    Returns:
        ``proto`` where its output's size follows already, and where it is no image. Otherwise zero is added
        to the output: the input's first channel times zero, enlarged as the network enlarges.
    """
    if network.output_name == LOGITS or network.fixed_size is not None or _follows(proto, network):
        return proto
    tied = onnx.ModelProto()
    tied.CopyFrom(proto)
    _add_zero(tied.graph, network.scale)
    return tied if _follows(tied, network) else proto


def inferred_shape(proto: onnx.ModelProto, shapes: Sequence[Sequence[int]]) -> list[int | str]:
    """The output's shape as shape inference gives it for fixed shapes of the inputs.

    A size that it does not find is the name that it has in the file, or "".
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(proto)
    for given, shape in zip(fixed.graph.input, shapes, strict=False):
        for size, wanted in zip(given.type.tensor_type.shape.dim, shape, strict=True):
            size.dim_value = wanted
    found = onnx.shape_inference.infer_shapes(fixed, strict_mode=True).graph.output[0]
    return [
        size.dim_value if size.HasField("dim_value") else size.dim_param
        for size in found.type.tensor_type.shape.dim
    ]


def _follows(proto: onnx.ModelProto, network: RestorationModel) -> bool:
    side = 8 * network.size_multiple
    try:
        found = inferred_shape(proto, network.input_shapes(side, 2 * side, 1))
    except onnx.shape_inference.InferenceError:
        return False
    return tuple(found[1:]) == network.output_shape(side, 2 * side)[1:]


def _add_zero(graph: onnx.GraphProto, scale: Fraction) -> None:
    source, output = graph.input[0], graph.output[0]
    kind = helper.tensor_dtype_to_np_dtype(output.type.tensor_type.elem_type)
    before, channel, zero, enlarged = (f"output/{part}" for part in ("before", "channel", "zero", "enlarged"))
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [before if name == output.name else name for name in names]
    constants = {
        "output/start": np.array([0], np.int64),
        "output/end": np.array([1], np.int64),
        "output/factor": np.array(0, kind),
        "output/scales": np.array([1, 1, scale, scale], np.float32),
    }
    names = list(constants)
    nodes = [
        helper.make_node("Slice", [source.name, names[0], names[1], names[1]], [channel], name=channel),
        helper.make_node("Mul", [channel, names[2]], [zero], name=zero),
    ]
    if scale != 1:
        nodes.append(
            helper.make_node("Resize", [zero, "", names[3]], [enlarged], name=enlarged, mode="nearest")
        )
    else:
        del constants[names[3]]
    nodes.append(helper.make_node("Add", [before, nodes[-1].output[0]], [output.name], name="output"))
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
