"""OpenVINO in the place of ONNX Runtime's session."""

from __future__ import annotations

import collections
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnx

from csa2glmha.core.environment import thread_count
from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.core.text import first_line

if TYPE_CHECKING:
    import openvino

#: Of all inputs.
Shapes = tuple[tuple[int, ...], ...]
HINT = "INFERENCE_PRECISION_HINT"
_TYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT16: "tensor(float16)",
    onnx.TensorProto.FLOAT: "tensor(float)",
    onnx.TensorProto.DOUBLE: "tensor(double)",
}
#: So often a shape must come before the network is compiled for it. That takes seconds, and pays where a
#: shape stays: at fixed sizes OpenVINO takes 0.7 of the time of open ones.
COMPILED_AT = 2
#: So many shapes are kept compiled: photographs are upright or lie. Each holds memory for its maps.
_KEPT = 2


def openvino_version() -> str | None:
    """The version of OpenVINO that is installed, such as "2026.4.1"; None: there is none."""
    if importlib.util.find_spec("openvino") is None:
        return None
    import openvino

    return str(openvino.__version__).split("-")[0]


def default_precision() -> str:
    """What OpenVINO calculates in on this CPU unless told otherwise, such as "f32" or "bf16"."""
    import openvino

    return str(openvino.Core().get_property("CPU", HINT).get_type_name())


@dataclass(frozen=True)
class End:
    """An input or output: what ONNX Runtime says of one."""

    name: str
    type: str
    shape: list[Any]


@dataclass(frozen=True)
class Meta:
    """The file's metadata, where ONNX Runtime has them."""

    custom_metadata_map: dict[str, str]


class OpenVinoSession:
    """What :class:`csa2glmha.export.runtime.OnnxModel` needs of an ONNX Runtime session, by OpenVINO.

    Args:
        path: the file.
        threads: None: one for each core that may be used.
        precision: OpenVINO's hint, such as "f32"; None: what it takes by itself, bf16 on some CPUs.
        fixed: compile for every shape; False: for open sizes, and for a shape that comes again.

    Raises:
        UsageError: OpenVINO is not installed.
        CheckpointError: the file is missing, or OpenVINO cannot compile it.
    """

    def __init__(
        self, path: Path, threads: int | None = None, precision: str | None = None, fixed: bool = False
    ) -> None:
        if openvino_version() is None:
            raise UsageError("OpenVINO is not installed: pip install csa2glmha[openvino]")
        import openvino

        self._path, self._fixed = path, fixed
        self._options = {"INFERENCE_NUM_THREADS": threads or thread_count(), "PERFORMANCE_HINT": "LATENCY"}
        if precision is not None:
            self._options[HINT] = precision
        self._core = openvino.Core()
        try:
            proto = onnx.load(path, load_external_data=False)
        except Exception as error:  # what onnx raises has no base class of its own
            reason = "no such file" if not path.exists() else first_line(error)
            raise CheckpointError(f"{str(path)!r} cannot be run as an ONNX model: {reason}") from error
        constants = {each.name for each in proto.graph.initializer}
        self._inputs = [_end(each) for each in proto.graph.input if each.name not in constants]
        self._outputs = [_end(each) for each in proto.graph.output]
        self._meta = Meta({entry.key: entry.value for entry in proto.metadata_props})
        self._seen: collections.Counter[Shapes] = collections.Counter()
        self._for_shapes: dict[Shapes, openvino.CompiledModel] = {}
        self._open = None if fixed else self._compile(())

    def get_inputs(self) -> list[End]:
        return self._inputs

    def get_outputs(self) -> list[End]:
        return self._outputs

    def get_modelmeta(self) -> Meta:
        return self._meta

    def run(
        self, outputs: Sequence[str], arrays: Mapping[str, npt.NDArray[Any]], options: object = None
    ) -> list[npt.NDArray[Any]]:
        """The outputs of those names. The options, of ONNX Runtime, change nothing."""
        compiled = self._compiled_for(tuple(array.shape for array in arrays.values()))
        found = compiled({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        return [np.array(found[name]) for name in outputs]

    def _compiled_for(self, shapes: Shapes) -> openvino.CompiledModel:
        self._seen[shapes] += 1
        known = self._for_shapes.pop(shapes, None)
        if known is None and (self._fixed or self._seen[shapes] % COMPILED_AT == 0):
            while len(self._for_shapes) >= _KEPT:  # before another one takes memory
                del self._for_shapes[next(iter(self._for_shapes))]
            known = self._compile(shapes)
        if known is None:
            return self._open
        self._for_shapes[shapes] = known  # the last one used is the last one given up
        return known

    def _compile(self, shapes: Shapes) -> openvino.CompiledModel:
        """For these shapes of the inputs; for open sizes, where there are none."""
        try:
            model = self._core.read_model(str(self._path))
            if shapes:
                model.reshape(dict(zip((each.name for each in self._inputs), map(list, shapes), strict=True)))
            return self._core.compile_model(model, "CPU", self._options)
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise CheckpointError(
                f"{str(self._path)!r} cannot be run by OpenVINO {openvino_version()}: "
                f"{(lines or ['no reason given'])[-1]}; export it with --for openvino"
            ) from error


def _end(value: onnx.ValueInfoProto) -> End:
    tensor = value.type.tensor_type
    shape = [each.dim_value if each.HasField("dim_value") else each.dim_param for each in tensor.shape.dim]
    return End(value.name, _TYPES.get(tensor.elem_type, "tensor(other)"), shape)
