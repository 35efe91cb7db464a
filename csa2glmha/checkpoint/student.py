"""Loading any supported model, and the file format of students.

A student file is safetensors; its metadata says how to rebuild the network:

    format            "csa2glmha-student"
    format_version    a number, see csa2glmha/checkpoint/migrations.py
    architecture      name in the registry
    hyperparameters   JSON, of the architecture
    layers            JSON, layer name to GLMHAConfig
    feed_forwards     JSON, name of a feed-forward network to the hidden channels that it has left
    skipped           JSON, names of layers that the student goes without
    network           JSON, of a network that is built elsewhere: the "class" that it is of; where it was
                      named by its builder also "builder", "arguments", the SHA-256 of its "sources", its
                      "interface" and its "global_operators"; where its attention was found by recording the
                      "replacements", layer name to csa2glmha.reading.replacement.Replacement, and
                      "feed_forwards", name to csa2glmha.reading.recorded_feedforward.RecordedFeedForward
    teacher_sha256    of the checkpoint it was made from
    teacher_values_sha256    in place of that: of the weights of a teacher that came from no file
    teacher_source    address of that on the Hugging Face Hub, with the commit, if it came from there
    teacher_weights   what they are called in it, where it holds several
    tool_version, seed, ranks, task
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, overload

import torch
from torch import nn

from csa2glmha.checkpoint import STUDENT_FORMAT, Checkpoint, is_student, read_checkpoint, write_safetensors
from csa2glmha.checkpoint.foreign import (
    NETWORK,
    described,
    foreign_template,
    load_foreign,
    unneeded,
    weights_sha256,
)
from csa2glmha.checkpoint.layers import (
    described_layers,
    described_replacements,
    described_skips,
    described_widths,
    put_layers,
)
from csa2glmha.checkpoint.migrations import FORMAT_VERSION, Stored, brought_up_to_date, format_of
from csa2glmha.checkpoint.networks import OneNetwork
from csa2glmha.config.network import NO_FILE, NetworkOptions
from csa2glmha.config.options import make_options
from csa2glmha.core.errors import CheckpointError, UsageError
from csa2glmha.core.hub import local_file
from csa2glmha.core.strict_json import dumps
from csa2glmha.core.text import one_line, quoted, shortened, shown
from csa2glmha.core.version import __version__
from csa2glmha.families.family import load_strictly
from csa2glmha.families.registry import build_from_state, family_named
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.foreign import ForeignNetwork, users_own

#: What a conversion calls it, in the folder that has the student's own name.
STUDENT_FILE = "student.safetensors"
#: A key of the metadata that not every student has.
TEACHER_VALUES = "teacher_values_sha256"

ModelT = TypeVar("ModelT", bound=nn.Module)


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


@overload
def load(path: str | Path, weights: str | None = None, *, network: str | None = None) -> RestorationModel: ...


@overload
def load(path: str | Path, weights: str | None = None, *, network: ModelT) -> ModelT: ...


@overload
def load(path: str | Path, weights: str | None = None, *, network: Callable[[], ModelT]) -> ModelT: ...


def load(
    path: str | Path,
    weights: str | None = None,
    *,
    network: nn.Module | Callable[[], nn.Module] | str | None = None,
) -> nn.Module:
    """Load a teacher's checkpoint or a student file.

    Args:
        path: .pth, .pt, .ckpt or .safetensors; or an address on the Hugging Face Hub such as
            "hf://owner/name/file.pth".
        weights: which to take of a file that holds several, such as "state_dict_ema"; None: averaged ones.
        network: for files of a network that is not of a known family: the network with any weights, or what
            builds it without arguments; a module that is given is not changed. Or what the command line takes
            as --network, such as "path/to/file.py:build", whose code is run: then images may have any size,
            and values are in [0, 1], as with networks of known families.

    Returns:
        The network in eval mode, float32, on the CPU.

    Raises:
        CheckpointError: the file cannot be read, is of no supported architecture, or does not fit it.
        UsageError: the file holds nothing that is called as ``weights``, or ``network`` makes no module.

    >>> network = load("tiny.pth")
    >>> network.architecture, network.training
    ('restormer', False)
    """
    file = local_file(path)
    if network is None or isinstance(network, str):
        return load_model(file, weights, make_options(network=network)).model
    built = network if isinstance(network, nn.Module) else network()
    if not isinstance(built, nn.Module):
        raise UsageError(f"load: network gives a {type(built).__name__}, no nn.Module; give what builds one")
    known = (OneNetwork.of(built, type(built).__name__),)
    return load_into(read_checkpoint(file, weights, known), built)


def load_model(
    path: str | Path, weights: str | None = None, network: NetworkOptions | None = None
) -> LoadedModel:
    """As :func:`load`, with what the file says about itself.

    Args:
        path: also :data:`~csa2glmha.config.network.NO_FILE`, of a network that brings its weights.
        weights: as for :func:`load`.
        network: the user's own, which the file is of unless it is a student of a known family.

    Raises:
        NetworkError: the user's code fails, or makes another network.
        CheckpointError, UsageError: as :func:`load`; also a student whose network is not named.
    """
    file = Path(path)
    named = network is not None and network.network is not None
    if network is not None and named and not is_student(file):
        return LoadedModel(*load_foreign(file, weights, network), False)
    if str(file) == NO_FILE:
        raise UsageError("-: stands for a network that brings its weights; name it with --network")
    checkpoint = read_checkpoint(file, weights)
    if not _is_student(checkpoint):
        return LoadedModel(build_from_state(checkpoint.state_dict, str(path)), checkpoint, False)
    checkpoint = _up_to_date(checkpoint)
    if NETWORK not in checkpoint.metadata:
        known = _build_student(checkpoint)
        if named:
            checkpoint = replace(checkpoint, notes=(*checkpoint.notes, unneeded(file, known.architecture)))
        return LoadedModel(known, checkpoint, True)
    built, notes = foreign_template(checkpoint, network)
    model = load_into(checkpoint, built)
    return LoadedModel(model, replace(checkpoint, notes=(*checkpoint.notes, *notes)), True)


def load_into(checkpoint: Checkpoint, network: ModelT) -> ModelT:
    """A network with the weights of a file; of a student's file also with its layers.

    Args:
        checkpoint: of that network.
        network: of the same structure; it is not changed.

    Returns:
        In eval mode, float32, on the CPU.

    Raises:
        CheckpointError: layers, keys or shapes do not fit.
    """
    model = copy.deepcopy(network).to("cpu", torch.float32)
    if isinstance(model, ForeignNetwork):
        model.network = load_into(checkpoint, model.network)
        return model.eval()
    source = str(checkpoint.path)
    if _is_student(checkpoint):
        checkpoint = _up_to_date(checkpoint)
        try:
            put_layers(model, checkpoint.metadata)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            said = shortened(one_line(str(error)), 300)
            raise CheckpointError(
                f"{shown(source)}: does not fit {type(model).__name__}: {said}; give the "
                "network that the student was made of"
            ) from error
    load_strictly(model, checkpoint.state_dict, source)
    return model.eval()


def _is_student(checkpoint: Checkpoint) -> bool:
    return checkpoint.metadata.get("format") == STUDENT_FORMAT


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
    put_layers(model, metadata)
    return model


def teacher_weights(teacher: Checkpoint) -> dict[str, str]:
    """What a student's metadata say of its teacher's weights: nothing where the file leaves no choice."""
    return {"teacher_weights": teacher.weights} if teacher.weights else {}


def is_made_from(metadata: Mapping[str, str], teacher: LoadedModel) -> bool:
    """Whether a student of these metadata was made from that teacher: of a file, or with its weights."""
    values = metadata.get(TEACHER_VALUES)
    if values is not None:
        return values == weights_sha256(teacher.model)
    return metadata.get("teacher_sha256") == teacher.checkpoint.sha256


def student_metadata(
    student: nn.Module, teacher_sha256: str | None, seed: int, extra: Mapping[str, str]
) -> dict[str, str]:
    """The metadata of a student file.

    Args:
        student: converted.
        teacher_sha256: of the teacher's file; None: it came from none.
        seed: of everything random.
        extra: what else is told.
    """
    network = {"architecture": type(users_own(student)).__name__, "hyperparameters": "{}"}
    if isinstance(student, RestorationModel):
        network = {
            "architecture": student.architecture,
            "hyperparameters": dumps(student.hyperparameters),
        }
    if isinstance(student, ForeignNetwork) or not isinstance(student, RestorationModel):
        network[NETWORK] = dumps(described(student) | described_replacements(student))
    return {
        "format": STUDENT_FORMAT,
        "format_version": str(FORMAT_VERSION),
        "tool_version": __version__,
        **network,
        "layers": dumps(described_layers(student)),
        "feed_forwards": dumps(described_widths(student)),
        "skipped": dumps(described_skips(student)),
        **({} if teacher_sha256 is None else {"teacher_sha256": teacher_sha256}),
        "seed": str(seed),
        **extra,
    }


def weight_bytes(model: nn.Module) -> int:
    """Bytes that a file of a network's weights takes, in float32."""
    return 4 * sum(each.numel() for each in (*model.parameters(), *model.buffers()))


def save_student(
    path: Path,
    student: nn.Module,
    metadata: dict[str, str],
    before_replacing: Callable[[], None] = lambda: None,
) -> None:
    """Write a student file, whole or not at all; see :func:`csa2glmha.core.files.atomic_path`.

    Raises:
        OutputError: the file cannot be written.
    """
    write_safetensors(path, users_own(student).state_dict(), metadata, before_replacing)
