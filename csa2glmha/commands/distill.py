"""Distilling a student file further."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import torch

from csa2glmha.checkpoint import Checkpoint
from csa2glmha.checkpoint.student import load_model, save_student, teacher_weights
from csa2glmha.commands.convert import bake, weights_of
from csa2glmha.config.options import ConvertOptions
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import UsageError
from csa2glmha.core.files import check_not_inputs, ensure_writable
from csa2glmha.core.hub import beside
from csa2glmha.core.locks import exclusive_file
from csa2glmha.core.progress import is_first_process, say
from csa2glmha.data.inputs.masks import is_made_for
from csa2glmha.data.open import as_trained, input_provenance, open_data
from csa2glmha.distill import DistillResult, StateFolder
from csa2glmha.distill.job import (
    LOG_FILE,
    STATE_FOLDER,
    DistillJob,
    check_training,
    check_truth,
    find_state,
    identity_of,
)
from csa2glmha.distill.processes import process_device
from csa2glmha.distill.state import resumable, with_room
from csa2glmha.families.registry import specialise_of


def distill_file(
    student: Path, teacher: Path, output: Path | None, overwrite: bool, options: ConvertOptions
) -> tuple[Path, DistillResult]:
    """Distil a student file further and write a new one.

    Args:
        student, teacher: the files.
        output: the new student file; None adds "-distilled" to the student's name.
        overwrite: replace an existing file.
        options: of them those on data, distillation, device and seed.

    Raises:
        Csa2GlmhaError: a file is unusable, or the teacher is not the student's.
    """
    output = output or beside(student, f"{student.stem}-distilled.safetensors")
    # Processes of one training write one output: the first of them does.
    lock = exclusive_file(_beside(output, STATE_FOLDER)) if is_first_process() else nullcontext()
    with resumable(_beside(output, STATE_FOLDER)), lock:
        return output, _distill_file(student, teacher, output, overwrite, options)


def _beside(output: Path, name: str) -> Path:
    """Where the states and the log of a student file are: "better-state", "better-distill.jsonl"."""
    return output.with_name(f"{output.stem}-{name}")


def _distill_file(
    student: Path, teacher: Path, output: Path, overwrite: bool, options: ConvertOptions
) -> DistillResult:
    place = process_device(resolve_device(options.device))
    check_training(options, place)
    loaded = load_model(student)
    made_from = loaded.checkpoint.metadata.get("teacher_weights")
    original = load_model(teacher, options.weights or made_from)
    if not loaded.is_student:
        raise UsageError(f"{student}: is not a student; make one with csa2glmha convert {student}")
    if original.is_student:
        raise UsageError(f"--teacher {teacher}: is a student; give the checkpoint it was made from")
    expected = loaded.checkpoint.metadata.get("teacher_sha256")
    if expected != original.checkpoint.sha256:
        raise UsageError(
            f"--teacher {teacher}: is not the checkpoint this student was made from (its SHA-256 begins with "
            f"{original.checkpoint.sha256[:12]}, the student's teacher's with {str(expected)[:12]})"
        )
    _check_weights(student, made_from, original.checkpoint, options.weights)
    _check_mask(student, loaded.checkpoint.metadata, options)
    options = as_trained(loaded.checkpoint.metadata, options)
    data = open_data(original.model, options)
    check_truth(options, data, original.model.out_channels)
    hashes = {
        "the teacher": original.checkpoint.sha256,
        **weights_of(original),
        "the student": loaded.checkpoint.sha256,
    }
    states = StateFolder(
        _beside(output, STATE_FOLDER), identity_of(options, data, hashes), options.state_minutes, say
    )
    options = options.model_copy(update={"overwrite": overwrite})
    state, log = find_state(states, options), _beside(output, LOG_FILE)
    check_not_inputs([output], student, teacher, options.mask)
    ensure_writable(output, overwrite or state is not None)
    ensure_writable(log, overwrite or options.resume)
    for note in (*original.checkpoint.notes, *data.notes):
        say(note)
    torch.manual_seed(options.seed)
    network, teacher_network = loaded.model, original.model
    if options.mask is not None:
        network = specialise_of(network).unbake(network, teacher_network)
    network.to(place).requires_grad_(True)
    teacher_network.to(place).requires_grad_(False)
    if state is None and is_first_process():
        states.clear()
    result = DistillJob(options, data, states, log).run(network, teacher_network, state)
    if not is_first_process():
        return result
    if options.mask is not None:
        network = bake(network, data)
    metadata = loaded.checkpoint.metadata | {"seed": str(options.seed)}
    metadata |= teacher_weights(original.checkpoint) | input_provenance(original.model, options)
    with_room(states, lambda: save_student(output, network.cpu(), metadata), result.steps)
    states.clear()
    return result


def _check_weights(student: Path, made_from: str | None, teacher: Checkpoint, asked: str | None) -> None:
    """Refuse other weights of the teacher's file than the student was made from."""
    if not teacher.others:
        return
    if made_from is None and asked is None:
        raise UsageError(
            f"--teacher {teacher.path}: holds {teacher.weights}, {', '.join(teacher.others)}, and {student} "
            "does not say which it was made from; choose with --weights"
        )
    if made_from is not None and made_from != teacher.weights:
        raise UsageError(f"--weights {asked}: {student} was made from {made_from}; leave it out")


def _check_mask(student: Path, metadata: Mapping[str, str], options: ConvertOptions) -> None:
    """Refuse a mask other than the one that a student was made for, or none where it needs one."""
    mask = options.mask
    if "mask_sha256" not in metadata:
        if mask is not None:
            raise UsageError(f"--mask {mask}: {student} has no mask baked in; leave it out")
    elif mask is None:
        raise UsageError(f"{student}: has a mask baked in; give its file, --mask")
    elif not is_made_for(metadata, mask, options.mask_key):
        raise UsageError(f"--mask {mask}: is not the mask that {student} was made for")
