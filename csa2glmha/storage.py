"""Loading any supported model, and the file format of students.

A student file is safetensors; its metadata says how to rebuild the network:

    format            "csa2glmha-student"
    format_version    "1"
    architecture      name in the registry
    hyperparameters   JSON, of the architecture
    layers            JSON, layer name to GLMHAConfig
    teacher_sha256    of the checkpoint it was made from
    teacher_source    address of that on the Hugging Face Hub, with the commit, if it came from there
    tool_version, seed, ranks, task
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from csa2glmha import __version__
from csa2glmha.attention.glmha import GLMHAConfig
from csa2glmha.attention.layers import glmha_layers, replace_layers
from csa2glmha.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from csa2glmha.errors import CheckpointError
from csa2glmha.hub import local_file
from csa2glmha.models import RestorationModel, build, build_from_state
from csa2glmha.models.registry import load_strictly

#: What a conversion calls it, in the folder that has the student's own name.
STUDENT_FILE = "student.safetensors"
STUDENT_FORMAT = "csa2glmha-student"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LoadedModel:
    """A network and the file it came from.

    Attributes:
        model: in eval mode, float32, on the CPU.
        checkpoint: the file; its state dict is the model's.
        is_student: it has been converted.
    """

    model: RestorationModel
    checkpoint: Checkpoint
    is_student: bool


def load(path: str | Path) -> RestorationModel:
    """Load a teacher's checkpoint or a student file.

    Args:
        path: .pth, .pt, .ckpt or .safetensors; or an address on the Hugging Face Hub such as
            "hf://owner/name/file.pth".

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: the file cannot be read, or is of no supported architecture.
    """
    return load_model(local_file(path)).model


def load_model(path: str | Path) -> LoadedModel:
    """As :func:`load`, with what the file says about itself."""
    checkpoint = read_checkpoint(path)
    if checkpoint.metadata.get("format") == STUDENT_FORMAT:
        return LoadedModel(_build_student(checkpoint), checkpoint, True)
    return LoadedModel(build_from_state(checkpoint.state_dict, str(path)), checkpoint, False)


def _build_student(checkpoint: Checkpoint) -> RestorationModel:
    metadata, source = checkpoint.metadata, str(checkpoint.path)
    version = metadata.get("format_version", "")
    if version != str(FORMAT_VERSION):
        raise CheckpointError(
            f"{source}: student format {version or 'unknown'} is not {FORMAT_VERSION}, which this "
            f"csa2glmha {__version__} reads; convert the teacher again, or install a matching version"
        )
    try:
        with torch.device("meta"):
            model = build(metadata["architecture"], json.loads(metadata["hyperparameters"]))
            configs = {name: GLMHAConfig(**config) for name, config in json.loads(metadata["layers"]).items()}
            replace_layers(model, configs)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{source}: damaged student metadata ({error!r}); convert the teacher again"
        ) from error
    load_strictly(model, checkpoint.state_dict, source)
    return model.eval()


def student_metadata(
    student: RestorationModel, teacher_sha256: str, seed: int, extra: Mapping[str, str]
) -> dict[str, str]:
    """The metadata of a student file."""
    layers = {name: layer.config.to_json() for name, layer in glmha_layers(student).items()}
    return {
        "format": STUDENT_FORMAT,
        "format_version": str(FORMAT_VERSION),
        "tool_version": __version__,
        "architecture": student.architecture,
        "hyperparameters": json.dumps(student.hyperparameters),
        "layers": json.dumps(layers),
        "teacher_sha256": teacher_sha256,
        "seed": str(seed),
        **extra,
    }


def save_student(path: Path, student: RestorationModel, metadata: dict[str, str]) -> None:
    """Write a student file, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    write_safetensors(path, student.state_dict(), metadata)
