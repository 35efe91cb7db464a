"""The first version of each runtime that loads a file, by its opset, its format and its operators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx

from csa2glmha.export.graph import STANDARD, every_node, opset_of
from csa2glmha.export.tensorrt import refused


@dataclass(frozen=True)
class Need:
    """What a runtime must be to load a file.

    Attributes:
        runtime: as people know it.
        version: the first that loads it; None: none that is known.
        note: what else there is to know.
    """

    runtime: str
    version: str | None
    note: str = ""

    def describe(self) -> str:
        """A few words for people: "ONNX Runtime 1.18 and later"."""
        known = f"{self.runtime} {self.version} and later" if self.version else f"{self.runtime}: not known"
        return f"{known} ({self.note})" if self.note else known


@dataclass(frozen=True)
class Release:
    """The newest opset, and the newest version of the format, that a runtime reads from a version on."""

    version: str
    opset: int
    ir_version: int


#: From 1.15 on by loading files of each; before that from ONNX Runtime's page on compatibility.
ONNX_RUNTIME = (
    Release("1.0", 11, 6),
    Release("1.3", 12, 7),
    Release("1.6", 13, 7),
    Release("1.8", 14, 7),
    Release("1.9", 15, 8),
    Release("1.11", 16, 8),
    Release("1.12", 17, 8),
    Release("1.14", 18, 8),
    Release("1.15", 19, 9),
    Release("1.17", 20, 9),
    Release("1.18", 21, 10),
    Release("1.21", 22, 10),
    Release("1.23", 23, 11),
    Release("1.24", 25, 13),
    Release("1.25", 26, 13),
    Release("1.32", 28, 14),
)
_ANY = 1 << 30
#: From docs/operators.md of onnx-tensorrt and TensorRT's guide to opsets. Formats are not limited.
TENSORRT = (
    Release("8.6", 17, _ANY),
    Release("9.0", 19, _ANY),
    Release("10.0", 20, _ANY),
    Release("11.0", 25, _ANY),
)
#: The oldest that files were tried in. It reads any opset; what it does not know is an operator.
OPENVINO = "2024.6"
#: The newest opset of files that it was tried with.
OPENVINO_OPSET = 21
#: Operators that 2024.6 was right with: in files of all families, and those of other networks one by one.
OPENVINO_KNOWS = frozenset(
    (
        *("Abs", "Add", "Atan", "Cast", "Clip", "Concat", "Conv", "ConvTranspose", "Cos"),
        *("DepthToSpace", "DequantizeLinear", "Div", "Equal", "Erf", "Expand", "Gather"),
        *("GatherElements", "Gelu", "Gemm", "Greater", "IsNaN", "LayerNormalization", "LeakyRelu"),
        *("Less", "MatMul", "Max", "MaxPool", "Min", "Mod", "Mul", "Neg", "PRelu", "Pad", "Pow"),
        *("QuantizeLinear", "Range", "Reciprocal", "ReduceL2", "ReduceMax", "ReduceMean"),
        *("ReduceMin", "ReduceSum", "ReduceSumSquare", "Reshape", "Resize", "Shape", "Sigmoid"),
        *("Sin", "Slice", "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Tanh"),
        *("Transpose", "Unsqueeze", "Where"),
        *("ArgMax", "AveragePool", "BatchNormalization", "Ceil", "Constant", "CumSum", "Dropout"),
        *("Einsum", "Elu", "Exp", "Flatten", "Floor", "GatherND", "GlobalAveragePool"),
        *("GlobalMaxPool", "GridSample", "HardSigmoid", "HardSwish", "Identity"),
        *("InstanceNormalization", "Log", "LogSoftmax", "LpNormalization", "Mean", "Mish", "ReduceL1"),
        *("ReduceLogSumExp", "ReduceProd", "Relu", "Round", "Selu", "Sign", "Softplus", "Sum"),
        *("ThresholdedRelu", "Tile", "TopK"),
    )
)


def needs_of(proto: onnx.ModelProto) -> tuple[Need, ...]:
    """What each runtime must be to load a file."""
    opset = opset_of(proto) or 0
    domains = sorted({node.domain for node in every_node(proto.graph)} - set(STANDARD))
    own = f"where it knows the operators of {', '.join(domains)}" if domains else ""
    return (
        Need("ONNX Runtime", _first(ONNX_RUNTIME, opset, proto.ir_version), own),
        _openvino(proto, opset),
        _tensorrt(proto, opset, domains),
    )


def _first(releases: Sequence[Release], opset: int, ir_version: int) -> str | None:
    return next(
        (each.version for each in releases if each.opset >= opset and each.ir_version >= ir_version), None
    )


def _openvino(proto: onnx.ModelProto, opset: int) -> Need:
    if opset > OPENVINO_OPSET:
        return Need("OpenVINO", None, f"not tried with opset {opset}")
    untried = sorted({node.op_type for node in every_node(proto.graph)} - OPENVINO_KNOWS)
    if untried:
        return Need("OpenVINO", None, f"not tried with {', '.join(untried[:4])}")
    return Need("OpenVINO", OPENVINO, "the oldest that was tried")


def _tensorrt(proto: onnx.ModelProto, opset: int, domains: Sequence[str]) -> Need:
    if domains:
        return Need("TensorRT", None, f"operators of {', '.join(domains)}")
    if any(node.op_type == "QuantizeLinear" for node in every_node(proto.graph)):
        return Need("TensorRT", None, "of eight bits it takes those with a zero point of 0")
    if not any(entry.key == "rewritten" for entry in proto.metadata_props):  # it is not ours
        return Need("TensorRT", _first(TENSORRT, opset, 0), "by its opset alone")
    stops = refused(proto)
    if not stops:
        return Need("TensorRT", TENSORRT[0].version, "by its table of operators")
    # The tables of 10.0 and later have what ours may hold.
    return Need("TensorRT", _first(TENSORRT[2:], opset, 0), f"8.6 refuses {', '.join(_shortly(stops))}")


def _shortly(stops: Sequence[str]) -> list[str]:
    """The first few reasons, opsets without the explanation."""
    return [stop.partition(",")[0] for stop in stops[:4]]
