"""How far the values in a file of half precision stay below what half precision holds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from csa2glmha.core.environment import thread_count
from csa2glmha.core.errors import ExportError
from csa2glmha.core.text import first_line
from csa2glmha.data.batches import Inputs
from csa2glmha.export.graph import types_of

#: The largest number in half precision.
LIMIT = float(torch.finfo(torch.float16).max)
#: Below this margin brighter or noisier images than those that were met may reach the limit.
_NARROW = 8.0
_FATAL_ONLY = 4


@dataclass(frozen=True)
class Headroom:
    """The largest value that was met in half precision.

    Attributes:
        largest: its magnitude; infinite where it went beyond the limit.
        where: the operator that it came out of.
        inputs: how many were run.
    """

    largest: float
    where: str
    inputs: int

    @property
    def margin(self) -> float:
        """The limit over the largest value."""
        return LIMIT / self.largest if self.largest else math.inf

    def describe(self) -> str:
        """One line for people."""
        if not self.margin > 1:  # written so that NaN counts
            return f"fp16: values beyond its limit of {LIMIT:.0f} in {self.where}: use fp32"
        line = (
            f"fp16: largest value met {self.largest:.4g}, in {self.where}; "
            f"the limit of {LIMIT:.0f} is {self.margin:.3g} times that ({self.inputs} inputs)"
        )
        return line if self.margin >= _NARROW else f"{line}: not much, other images may go beyond it"


def measure_headroom(path: Path, inputs: Sequence[Inputs]) -> Headroom | None:
    """Run a file and find its largest value in half precision; None where it has none.

    Args:
        path: the file.
        inputs: in the order of the file's; further ones are left out.

    Raises:
        ExportError: the file does not run.
    """
    proto = onnx.load(path)
    taken = [(value.name, value.type.tensor_type.elem_type) for value in proto.graph.input]
    watched = _watch(proto)
    if not watched:
        return None
    options = ort.SessionOptions()
    options.log_severity_level, options.enable_mem_pattern = _FATAL_ONLY, False
    options.intra_op_num_threads = thread_count()
    largest = np.zeros(len(watched), np.float32)
    try:
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for each in inputs:
            arrays = {
                name: value.numpy().astype(helper.tensor_dtype_to_np_dtype(kind))
                for (name, kind), value in zip(taken, each, strict=False)
            }
            # Not fmax: what is not a number is no small one.
            largest = np.maximum(largest, session.run([_LARGEST], arrays)[0])
    # ONNX Runtime's exceptions have no base class of their own.
    except Exception as error:
        raise ExportError(f"the largest values in half precision: {first_line(error)}") from error
    first = int(np.argmax(np.nan_to_num(largest, nan=np.inf)))
    return Headroom(float(largest[first]), watched[first], len(inputs))


_LARGEST = "largest values"


def _watch(proto: onnx.ModelProto) -> list[str]:
    """Make the largest magnitude of every result in half precision an output; names of the operators."""
    graph = proto.graph
    kinds = types_of(proto)
    nodes, parts, names = [], [], []
    for node in graph.node:
        for result in node.output:
            if kinds.get(result) != TensorProto.FLOAT16:
                continue
            exact, positive, most = (f"{result}/{part}" for part in ("exact", "magnitude", "largest"))
            nodes += [
                helper.make_node("Cast", [result], [exact], to=TensorProto.FLOAT),
                helper.make_node("Abs", [exact], [positive]),
                helper.make_node("ReduceMax", [positive], [most], keepdims=0),
                helper.make_node("Reshape", [most, f"{_LARGEST}/one"], [f"{most}/one"]),
            ]
            parts.append(f"{most}/one")
            names.append(node.name or result)
    if names:
        graph.node.extend([*nodes, helper.make_node("Concat", parts, [_LARGEST], axis=0)])
        graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), f"{_LARGEST}/one"))
        graph.output.append(helper.make_tensor_value_info(_LARGEST, TensorProto.FLOAT, [len(names)]))
    return names
