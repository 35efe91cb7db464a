"""What an ONNX file says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from csa2glmha.checkpoint.student import STUDENT_FILE, TEACHER_VALUES, LoadedModel, teacher_weights
from csa2glmha.core.errors import CheckpointError
from csa2glmha.core.hub import repository_of, source_of, teacher_source
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import first_line, one_line
from csa2glmha.core.version import __version__
from csa2glmha.export.graph import opset_of
from csa2glmha.export.needs import needs_of

LICENSE_NOTE = (
    "The weights derive from the checkpoint whose SHA-256 is teacher_sha256; "
    "its license applies to this file."
)
#: Of a student whose teacher came from no file.
_LICENSE_OF_VALUES = LICENSE_NOTE.replace(
    "the checkpoint whose SHA-256 is teacher_sha256", "weights whose SHA-256 is teacher_values_sha256"
)
_FROM_STUDENT = (
    "ranks",
    "task",
    "attention",
    "stretch",
    "image_size",
    "mask",
    "mask_sha256",
    "mask_values_sha256",
    "teacher_sha256",
    TEACHER_VALUES,
    "teacher_source",
    "teacher_weights",
    "seed",
)


def onnx_metadata(
    name: str,
    architecture: str,
    hyperparameters: Mapping[str, Any],
    provenance: Mapping[str, str],
    inputs: str = "",
) -> dict[str, str]:
    """The metadata of an ONNX file.

    Args:
        name: of the model, such as its file's without the suffix, or its folder's.
        architecture, hyperparameters: of the network.
        provenance: a student's metadata, or the "teacher_sha256" of an unconverted checkpoint.
        inputs: the kind of the network's inputs; "" leaves the entry out.
    """
    return {
        "name": name,
        "generator": f"csa2glmha {__version__}",
        "architecture": architecture,
        "hyperparameters": dumps(dict(hyperparameters)),
        "kind": "student" if "ranks" in provenance else "teacher",
        **({"inputs": inputs} if inputs else {}),
        **{key: provenance[key] for key in _FROM_STUDENT if key in provenance},
        "license": _LICENSE_OF_VALUES if TEACHER_VALUES in provenance else LICENSE_NOTE,
    }


def metadata_of(loaded: LoadedModel) -> dict[str, str]:
    """The metadata of a loaded file's export."""
    checkpoint, model = loaded.checkpoint, loaded.model
    own = (
        {"teacher_sha256": checkpoint.sha256} | teacher_source(checkpoint.path) | teacher_weights(checkpoint)
    )
    provenance = checkpoint.metadata if loaded.is_student else own
    name = checkpoint.path.stem
    if checkpoint.path.name == STUDENT_FILE:
        # All conversions call it that; the ONNX file that they write has the name of the folder, too.
        source = source_of(checkpoint.path)
        folder = checkpoint.path.resolve().parent.name if source is None else repository_of(source)
        name = folder.rpartition("/")[2] or name
    return onnx_metadata(name, model.architecture, model.hyperparameters, provenance, model.inputs)


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Inputs, outputs, operators and metadata of an ONNX file, as JSON values.

    Raises:
        CheckpointError: it is not readable as ONNX.
    """
    try:
        proto = onnx.load(path)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}; check the path") from None
    # What the parser raises belongs to a package of which onnx does not say that it uses it.
    except Exception as error:
        raise CheckpointError(f"{path}: not an ONNX file ({first_line(error)}); export it again") from error
    graph, needs = proto.graph, needs_of(proto)
    if not graph.node:
        raise CheckpointError(f"{path}: holds no ONNX graph; export it again")
    operators: dict[str, int] = {}
    for node in graph.node:
        operators[node.op_type] = operators.get(node.op_type, 0) + 1
    return {
        "file": str(path),
        "kind": "onnx",
        "opset": opset_of(proto),
        "ir_version": proto.ir_version,
        "needs": {need.runtime: need.version for need in needs},
        "needs_in_words": [need.describe() for need in needs],
        "bytes": path.stat().st_size,
        "inputs": {value.name: _shape(value) for value in graph.input},
        "outputs": {value.name: _shape(value) for value in graph.output},
        "custom_operators": sorted({node.domain for node in graph.node} - {"", "ai.onnx"}),
        "operators": dict(sorted(operators.items(), key=lambda item: -item[1])),
        "metadata": {entry.key: entry.value for entry in proto.metadata_props},
    }


def describe_onnx(found: dict[str, Any]) -> str:
    """The same for people."""
    count = sum(found["operators"].values())
    most = ", ".join(f"{number} {name}" for name, number in list(found["operators"].items())[:6])
    custom = ", ".join(found["custom_operators"]) or "none"
    return "\n".join(
        [
            one_line(
                f"{found['file']}: ONNX, opset {found['opset']}, IR version {found['ir_version']}, "
                f"{found['bytes'] / 1e6:.1f} MB"
            ),
            f"  {one_line('loads in: ' + '; '.join(found['needs_in_words']))}",
            *(f"  {_tensor('input', name, shape)}" for name, shape in found["inputs"].items()),
            *(f"  {_tensor('output', name, shape)}" for name, shape in found["outputs"].items()),
            f"  {one_line(f'operators: {count} ({most}, ...); custom ones: {custom}')}",
            *(f"  {one_line(f'{key}: {value}')}" for key, value in found["metadata"].items()),
        ]
    )


def _tensor(kind: str, name: str, shape: list[int | str]) -> str:
    return one_line(f"{kind} {name}: {' x '.join(map(str, shape))}")


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_param or "?" if not dim.HasField("dim_value") else dim.dim_value for dim in dims]
