"""Distilling a student file further."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from csa2glmha.checkpoint import Checkpoint
from csa2glmha.checkpoint.foreign import as_of_student
from csa2glmha.checkpoint.student import (
    TEACHER_VALUES,
    LoadedModel,
    is_made_from,
    load_model,
    save_student,
    teacher_weights,
)
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
    check_ground_truth,
    check_training,
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


@dataclass(frozen=True)
class _Pair:
    """A student and the teacher that it was made from."""

    student: LoadedModel
    teacher: LoadedModel

    @property
    def hashes(self) -> dict[str, str]:
        """What a state must have been made from."""
        student, teacher = self.student.checkpoint, self.teacher.checkpoint
        return {"the teacher": teacher.sha256, **weights_of(self.teacher), "the student": student.sha256}

    def metadata(self, options: ConvertOptions) -> dict[str, str]:
        """Of the student's new file."""
        metadata = self.student.checkpoint.metadata | {"seed": str(options.seed)}
        teacher = self.teacher
        return metadata | teacher_weights(teacher.checkpoint) | input_provenance(teacher.model, options)


def _distill_file(
    student: Path, teacher: Path, output: Path, overwrite: bool, options: ConvertOptions
) -> DistillResult:
    place = process_device(resolve_device(options.device))
    check_training(options, place)
    pair = _open_pair(student, teacher, options)
    options = as_trained(pair.student.checkpoint.metadata, options)
    options = options.model_copy(update={"overwrite": overwrite})
    data = open_data(pair.teacher.model, options)
    check_ground_truth(options, data, pair.teacher.model)
    identity = identity_of(options, data, pair.hashes)
    states = StateFolder(_beside(output, STATE_FOLDER), identity, options.state_minutes, say)
    state, log = find_state(states, options), _beside(output, LOG_FILE)
    check_not_inputs([output], student, teacher, options.mask)
    ensure_writable(output, overwrite or state is not None)
    ensure_writable(log, overwrite or options.resume)
    for note in (*pair.teacher.checkpoint.notes, *data.notes):
        say(note)
    torch.manual_seed(options.seed)
    network, teacher_network = pair.student.model, pair.teacher.model
    if options.mask is not None:
        network = specialise_of(network).unbake(network, teacher_network)
    network.to(place).requires_grad_(True)
    teacher_network.to(place).requires_grad_(False)
    if state is None and is_first_process():
        states.clear()
    result = DistillJob(options, data, states, log).run(network, teacher_network, state)
    if is_first_process():
        if options.mask is not None:
            network = bake(network, data)
        with_room(states, lambda: save_student(output, network.cpu(), pair.metadata(options)), result.steps)
        states.clear()
    return result


def _open_pair(student: Path, teacher: Path, options: ConvertOptions) -> _Pair:
    """Both networks, once they are known to belong together, with their weights and mask.

    Raises:
        UsageError: they do not.
    """
    loaded = load_model(student, network=options)
    metadata = loaded.checkpoint.metadata
    made_from = metadata.get("teacher_weights")
    original = load_model(teacher, options.weights or made_from, as_of_student(metadata, options))
    if not loaded.is_student:
        raise UsageError(f"{student}: is not a student; make one with csa2glmha convert {student}")
    if original.is_student:
        raise UsageError(f"--teacher {teacher}: is a student; give the checkpoint it was made from")
    if not is_made_from(metadata, original):
        raise UsageError(f"--teacher {teacher}: {_difference(metadata, original.checkpoint)}")
    if TEACHER_VALUES not in metadata:
        _check_weights(student, made_from, original.checkpoint, options.weights)
    _check_mask(student, metadata, options)
    return _Pair(loaded, original)


def _difference(metadata: Mapping[str, str], teacher: Checkpoint) -> str:
    """What a teacher's file is not."""
    if TEACHER_VALUES in metadata:
        others = f"; choose of {', '.join(teacher.others)} with --weights" if teacher.others else ""
        return f"does not hold the weights that this student was made from in memory{others}"
    expected = str(metadata.get("teacher_sha256"))
    return (
        f"is not the checkpoint this student was made from (its SHA-256 begins with {teacher.sha256[:12]}, "
        f"the student's teacher's with {expected[:12]})"
    )


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
