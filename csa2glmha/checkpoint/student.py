"""Loading any supported model, and the file format of students.

A student file is safetensors; its metadata says how to rebuild the network:

    format            "csa2glmha-student"
    format_version    a number, see csa2glmha/checkpoint/migrations.py
    architecture      name in the registry
    hyperparameters   JSON, of the architecture
    layers            JSON, layer name to GLMHAConfig
    teacher_sha256    of the checkpoint it was made from
    teacher_source    address of that on the Hugging Face Hub, with the commit, if it came from there
    teacher_weights   what they are called in it, where it holds several
    tool_version, seed, ranks, task
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from csa2glmha.attention.stored import read_config
from csa2glmha.checkpoint import STUDENT_FORMAT, Checkpoint, read_checkpoint, write_safetensors
from csa2glmha.checkpoint.migrations import FORMAT_VERSION, Stored, brought_up_to_date, format_of
from csa2glmha.core.errors import CheckpointError
from csa2glmha.core.hub import local_file
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import quoted, shown
from csa2glmha.core.version import __version__
from csa2glmha.families.family import load_strictly
from csa2glmha.families.registry import build_from_state, family_named
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers, glmha_layers, replace_layers

#: What a conversion calls it, in the folder that has the student's own name.
STUDENT_FILE = "student.safetensors"


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


def load(path: str | Path, weights: str | None = None) -> RestorationModel:
    """Load a teacher's checkpoint or a student file.

    Args:
        path: .pth, .pt, .ckpt or .safetensors; or an address on the Hugging Face Hub such as
            "hf://owner/name/file.pth".
        weights: which to take of a file that holds several, such as "state_dict_ema"; None: averaged ones.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: the file cannot be read, or is of no supported architecture.
        UsageError: the file holds nothing that is called as ``weights``.

    >>> network = load("tiny.pth")
    >>> network.architecture, network.training
    ('restormer', False)
    """
    return load_model(local_file(path), weights).model


def load_model(path: str | Path, weights: str | None = None) -> LoadedModel:
    """As :func:`load`, with what the file says about itself."""
    checkpoint = read_checkpoint(path, weights)
    if checkpoint.metadata.get("format") == STUDENT_FORMAT:
        checkpoint = _up_to_date(checkpoint)
        return LoadedModel(_build_student(checkpoint), checkpoint, True)
    return LoadedModel(build_from_state(checkpoint.state_dict, str(path)), checkpoint, False)


def _up_to_date(checkpoint: Checkpoint) -> Checkpoint:
    """The student file as the present format has it."""
    version = format_of(checkpoint.metadata)
    if version is None:
        given = shown(checkpoint.metadata.get("format_version", "")) or "unknown"
        known = "1" if FORMAT_VERSION == 1 else f"1 to {FORMAT_VERSION}"
        raise CheckpointError(
            f"{shown(checkpoint.path)}: student format {given} is not {known}, which this csa2glmha "
            f"{__version__} reads; convert the teacher again, or install a matching version"
        )
    stored = brought_up_to_date(Stored(checkpoint.state_dict, checkpoint.metadata), version)
    return replace(checkpoint, state_dict=dict(stored.tensors), metadata=dict(stored.metadata))


def _build_student(checkpoint: Checkpoint) -> RestorationModel:
    metadata, source = checkpoint.metadata, str(checkpoint.path)
    try:
        with torch.device("meta"):
            model = _described_network(metadata, len(checkpoint.state_dict))
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{shown(source)}: damaged student metadata ({quoted(error, 300)}); convert the teacher again"
        ) from error
    load_strictly(model, checkpoint.state_dict, source)
    return model.eval()


def _described_network(metadata: Mapping[str, str], tensors: int) -> RestorationModel:
    """The network that the metadata of a student describe, without its weights."""
    family = family_named(metadata["architecture"])
    model = family.build(family.check(json.loads(metadata["hyperparameters"]), tensors))
    layers = attention_layers(model)
    configs = {}
    for layer, value in json.loads(metadata["layers"]).items():
        if layer not in layers:
            raise ValueError(f"layer {layer!r}: the network has no such attention")
        try:
            configs[layer] = read_config(value, layers[layer].form)
        except ValueError as error:
            raise ValueError(f"layer {layer!r}: {error}") from None
    replace_layers(model, configs)
    return model


def teacher_weights(teacher: Checkpoint) -> dict[str, str]:
    """What a student's metadata say of its teacher's weights: nothing where the file leaves no choice."""
    return {"teacher_weights": teacher.weights} if teacher.weights else {}


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
        "hyperparameters": dumps(student.hyperparameters),
        "layers": dumps(layers),
        "teacher_sha256": teacher_sha256,
        "seed": str(seed),
        **extra,
    }


def weight_bytes(model: RestorationModel) -> int:
    """Bytes that a file of a network's weights takes, in float32."""
    return 4 * sum(each.numel() for each in (*model.parameters(), *model.buffers()))


def save_student(
    path: Path,
    student: RestorationModel,
    metadata: dict[str, str],
    before_replacing: Callable[[], None] = lambda: None,
) -> None:
    """Write a student file, whole or not at all; see :func:`csa2glmha.core.files.atomic_path`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_safetensors(path, student.state_dict(), metadata, before_replacing)
