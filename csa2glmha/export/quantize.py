"""Static quantisation of exported networks to eight bits.

Only convolutions that bear it become int8: dense ones with many inputs. These stay in float (PSNR of a
denoising Restormer when quantised, in dB, measured one group at a time): what the attention is made from
and its logits (-0.05), the output convolutions of feed-forward parts, whose inputs are products or GELUs with
rare large values (-0.13), depthwise convolutions, and the first and the last convolution.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from csa2glmha.core.errors import ExportError
from csa2glmha.core.text import first_line
from csa2glmha.data.batches import Inputs

_MANY_INPUTS = 16
#: What maps pass through on their way into an attention product.
_LEADS_ON = frozenset({"Reshape", "Split", "Transpose", "Cast"})


def quantize(source: Path, target: Path, inputs: Sequence[Inputs]) -> int:
    """Quantise an ONNX file.

    Args:
        source, target: files; the metadata are kept.
        inputs: calibration inputs, in the order of the file's.

    Returns:
        The number of convolutions in int8.

    Raises:
        ExportError: ONNX Runtime cannot, or no convolution bears it.
    """
    proto = onnx.load(source)
    chosen = robust_convolutions(proto.graph)
    if not chosen:
        raise ExportError("no convolution of this network bears eight bits; use --precision fp16")
    names = [value.name for value in proto.graph.input]
    disabled, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.WARNING)  # it recommends a preprocessing that this graph has behind it
    try:
        quantize_static(
            source,
            target,
            _Reader(names, inputs),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    # ONNX Runtime's exceptions have no base class of their own.
    except Exception as error:
        raise ExportError(f"static quantisation failed: {first_line(error)}; use --precision fp16") from error
    finally:
        logging.disable(disabled)
        logging.root.handlers[:] = handlers  # it adds one, and all that we say would be said twice
    quantised = onnx.load(target)
    del quantised.graph.value_info[:]  # shapes that it inferred; see plain.clean
    # The quantiser declares its own operators' domain, of which it uses none here.
    used = {node.domain or "" for node in quantised.graph.node}
    declared = [entry for entry in quantised.opset_import if entry.domain in used]
    del quantised.opset_import[:]
    quantised.opset_import.extend(declared)
    quantised.ir_version = proto.ir_version
    onnx.helper.set_model_props(
        quantised, {entry.key: entry.value for entry in proto.metadata_props} | {"precision": "int8"}
    )
    target.write_bytes(quantised.SerializeToString())
    return len(chosen)


def robust_convolutions(graph: onnx.GraphProto) -> list[str]:
    """Names of the convolutions that may be quantised."""
    weights = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            consumers.setdefault(name, []).append(node)

    def kind(name: str) -> str:
        return producers[name].op_type if name in producers else ""

    def rare_large_values(name: str) -> bool:
        if kind(name) == "Mul":
            return any(rare_large_values(factor) for factor in producers[name].input)
        # Before opset 20 a GELU is x / 2 times the sum of one and Erf.
        bends = kind(name) == "Add" and any(kind(term) == "Erf" for term in producers[name].input)
        return bends or kind(name) == "Gelu"

    def feeds_attention(name: str) -> bool:
        for node in consumers.get(name, []):
            depthwise = node.op_type == "Conv" and weights.get(node.input[1], [0, 0])[1] == 1
            if node.op_type in ("MatMul", "ReduceSumSquare"):
                return True
            leads_on = depthwise or node.op_type in _LEADS_ON
            if leads_on and any(feeds_attention(output) for output in node.output):
                return True
        return False

    convolutions = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in weights]
    return [
        node.name
        for node in convolutions[1:-1]
        if weights[node.input[1]][1] >= _MANY_INPUTS
        and not rare_large_values(node.input[0])
        and not feeds_attention(node.output[0])
    ]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
    def __init__(self, names: Sequence[str], inputs: Sequence[Inputs]) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(
            [
                {name: value.numpy() for name, value in zip(names, each[: len(names)], strict=True)}
                for each in inputs
            ]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)
