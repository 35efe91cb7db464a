"""Building an ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

FLOAT, HALF, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
BOOL = TensorProto.BOOL


#: The names of the domain of ONNX's own operators.
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class GraphValue:
    """A result in the graph: its name, element type and number of axes."""

    name: str
    dtype: int
    rank: int


@dataclass(frozen=True)
class Spelling:
    """Of the ways to write the same network, the one that a runtime is fast or right with.

    Attributes:
        channels_last: the runtime keeps maps so in memory; see
            :class:`~csa2glmha.export.lowering.folding.Laid`.
        blocks: it keeps maps in blocks of channels, and must be told where; see
            :func:`~csa2glmha.export.lowering.primitives.common_source`.
        parts_of_shapes: it knows the operator that gives some of a result's sizes, not all of them.
    """

    channels_last: bool = False
    blocks: bool = True
    parts_of_shapes: bool = True


Operand = GraphValue | Tensor | np.ndarray | float | int


class GraphBuilder:
    """Collects nodes and constants; equal nodes and equal constants are made once.

    Args:
        opset: version of the operators, which handlers may ask for.
        spelling: what suits the runtime, likewise.
    """

    def __init__(self, opset: int, spelling: Spelling | None = None) -> None:
        self.opset, self.spelling = opset, spelling or Spelling()
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[Any, ...], onnx.TensorProto] = {}
        self._made: dict[tuple[Any, ...], list[GraphValue]] = {}
        self._used_names: set[str] = set()
        #: What node names begin with.
        self.scope = "node"

    def op(
        self,
        op_type: str,
        *operands: Operand | None,
        dtype: int | None = None,
        rank: int | None = None,
        **attributes: Any,
    ) -> GraphValue:
        """Add a node with one result.

        Args:
            op_type: a standard operator.
            operands: constants get the type of the first :class:`Value` among them where they are
                floating-point numbers; None leaves one out.
            dtype, rank: of the result; None: the first operand's type, the most axes of any operand.
            attributes: of the operator.
        """
        (result,) = self.ops(op_type, 1, *operands, dtype=dtype, rank=rank, **attributes)
        return result

    def ops(
        self,
        op_type: str,
        outputs: int,
        *operands: Operand | None,
        dtype: int | None = None,
        rank: int | None = None,
        **attributes: Any,
    ) -> list[GraphValue]:
        """As :meth:`op`, for operators with several results."""
        values = [operand for operand in operands if isinstance(operand, GraphValue)]
        if dtype is None:
            dtype = values[0].dtype
        if rank is None:
            rank = max(value.rank for value in values)
        names = [self._name(operand, values) for operand in operands]
        key = (op_type, outputs, tuple(names), repr(sorted(attributes.items())))
        if key not in self._made:
            name = self._unique(f"{self.scope}/{op_type}")
            results = [name if outputs == 1 else f"{name}:{index}" for index in range(outputs)]
            self._nodes.append(helper.make_node(op_type, names, results, name=name, **attributes))
            self._made[key] = [GraphValue(result, dtype, rank) for result in results]
        return self._made[key]

    def cast(self, value: GraphValue, dtype: int) -> GraphValue:
        """``value`` in another element type."""
        if value.dtype == dtype:
            return value
        return self.op("Cast", value, dtype=dtype, to=dtype)

    def model(
        self,
        inputs: dict[str, Sequence[int | str]],
        output: GraphValue,
        output_shape: Sequence[int | str],
    ) -> onnx.ModelProto:
        """The finished model; its one output is called "output", and the inputs have its type."""
        self._nodes.append(helper.make_node("Identity", [output.name], ["output"], name="output"))
        graph = helper.make_graph(
            self._live_nodes(),
            "csa2glmha",
            [
                helper.make_tensor_value_info(name, output.dtype, list(shape))
                for name, shape in inputs.items()
            ],
            [helper.make_tensor_value_info("output", output.dtype, list(output_shape))],
        )
        used = {name for node in graph.node for name in node.input}
        graph.initializer.extend(c for c in self._constants.values() if c.name in used)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=oldest_format(opsets), producer_name="csa2glmha"
        )

    def _live_nodes(self) -> list[onnx.NodeProto]:
        """The nodes that the last one needs, in order; the last, an identity, is merged into its source."""
        *nodes, identity = self._nodes
        needed, kept = {identity.input[0]}, []
        for node in reversed(nodes):
            if needed.intersection(node.output):
                needed.update(node.input)
                kept.append(node)
        for node in kept:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == identity.input[0]:
                        names[index] = "output"
        return kept[::-1]

    def _name(self, operand: Operand | None, values: list[GraphValue]) -> str:
        if operand is None:
            return ""
        return operand.name if isinstance(operand, GraphValue) else self._constant(operand, values)

    def _constant(self, value: Tensor | np.ndarray | float | int, values: list[GraphValue]) -> str:
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        if array.dtype.kind == "f" or (array.ndim == 0 and values[0].dtype in (FLOAT, HALF)):
            array = array.astype(np.float16 if values[0].dtype == HALF else np.float32)
        array = np.ascontiguousarray(array).reshape(array.shape)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = self._unique(f"{self.scope}/constant")
            self._constants[key] = numpy_helper.from_array(array, name)
        return self._constants[key].name

    def _unique(self, name: str) -> str:
        candidate, count = name, 1
        while candidate in self._used_names:
            candidate, count = f"{name}_{count}", count + 1
        self._used_names.add(candidate)
        return candidate


def every_node(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph, and those of the graphs inside them, such as the branches of an If."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from every_node(inner)


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    """The element types of results and inputs, as far as ONNX's inference knows them."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    values = (*graph.value_info, *graph.input, *graph.output)
    return {each.name: each.type.tensor_type.elem_type for each in values}


def element_type(dtype: torch.dtype) -> int:
    """ONNX's name of a PyTorch floating-point type."""
    return HALF if dtype == torch.float16 else FLOAT


def oldest_format(opsets: Sequence[onnx.OperatorSetIdProto]) -> int:
    """The oldest version of the file's own format that goes with operators of these versions.

    ONNX Runtime 1.16 and 1.17 refuse a file in a newer format whatever its operators are.
    """
    return int(helper.find_min_ir_version_for(list(opsets)))


def opset_of(proto: onnx.ModelProto) -> int | None:
    """The version of ONNX's own operators that a file is written in; None: it uses none of them."""
    versions = (each.version for each in proto.opset_import if each.domain in STANDARD)
    return next(versions, None)
