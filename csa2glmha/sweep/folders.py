"""What is in the folder of a point already: a result, part of one, or something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csa2glmha.checkpoint import Checkpoint, read_checkpoint
from csa2glmha.checkpoint.student import STUDENT_FILE
from csa2glmha.compression.files import provenance
from csa2glmha.compression.workspace import ONNX_FILE
from csa2glmha.config.affects import Affects, values_that_affect
from csa2glmha.config.options import ConvertOptions, migrated
from csa2glmha.core.errors import OutputError
from csa2glmha.data.open import STRETCH
from csa2glmha.distill import StateFolder
from csa2glmha.distill.job import STATE_FOLDER
from csa2glmha.report.schema import Report
from csa2glmha.report.stored import JSON_FILE, read_record
from csa2glmha.sweep.points import Point

#: Options that a point may differ in all the same: the weights that were taken count, not how they were
#: asked for, and all points are timed together in the end.
_FREE = {"weights", "timing"}
_WAY_OUT = "pass --overwrite to make it again, or choose another folder with -o"


def has_state(folder: Path) -> bool:
    """An interrupted distillation of this point can go on."""
    return bool(StateFolder(folder / STATE_FOLDER, {}).steps())


def finished_report(
    folder: Path, point: Point, teacher: Checkpoint, images: Mapping[str, Any]
) -> Report | None:
    """The report of a point that need not be made again; None if it, or a part of it, is still to be made.

    Args:
        folder: of the point; it need not exist.
        point: as it is wanted now.
        teacher: the checkpoint.
        images: what :func:`csa2glmha.data.identity.describe_images` says of the images now.

    Raises:
        OutputError: there is a result that was made otherwise.
    """
    if has_state(folder):
        return None
    if not (folder / JSON_FILE).exists():
        _check_student(folder, point, teacher)
        return None
    try:
        report = read_record(folder)
    except OutputError as error:
        raise OutputError(f"{error}; delete {folder}, pass --overwrite, or choose another -o") from error
    other = other_options(report.options, point.options)
    if report.teacher.sha256 != teacher.sha256:
        other.append("checkpoint")
    elif report.teacher.weights != teacher.weights:
        other.append("weights")
    _refuse(folder, other)
    check_images(folder, report, images)
    complete = all((folder / name).exists() for name in (STUDENT_FILE, ONNX_FILE))
    return report if complete else None


def other_options(made: Mapping[str, Any], wanted: ConvertOptions) -> list[str]:
    """The options for which a point that was made with some must be made again with others."""
    made, values = migrated(made), values_that_affect(Affects.REPORT, wanted)
    return [name for name, value in values.items() if name not in _FREE and made.get(name) != value]


def check_images(folder: Path, report: Report, images: Mapping[str, Any]) -> None:
    """Refuse a report on other images: its figures cannot be set beside those of other points.

    Raises:
        OutputError: they are others.
    """
    then = {} if report.data is None else report.data.to_json()
    if all(then.get(name, value) == value for name, value in images.items()):
        return
    counts = [(each["training_images"], each["held_out_images"]) for each in (then, images)]
    if counts[0] != counts[1]:
        (training, held_out), (training_now, held_out_now) = counts
        words = (
            f"{training} for training and {held_out} held out, now there are {training_now} and "
            f"{held_out_now}"
        )
    else:
        words = "as many, but others or changed ones are held out"
    raise OutputError(f"{folder}: was made with other images ({words}); {_WAY_OUT}")


def _check_student(folder: Path, point: Point, teacher: Checkpoint) -> None:
    """A run that was killed before its report leaves a student, which is made again; others are kept."""
    if not (folder / STUDENT_FILE).exists():
        return
    made = read_checkpoint(folder / STUDENT_FILE).metadata
    wanted = {"checkpoint": ("teacher_sha256", teacher.sha256), "seed": ("seed", str(point.options.seed))}
    wanted |= {name: (name, value) for name, value in provenance(point.options).items()}
    if teacher.weights:
        wanted["weights"] = ("teacher_weights", teacher.weights)
    other = [name for name, (key, value) in wanted.items() if made.get(key) != value]
    _refuse(folder, other + ["no-stretch"] * ((made.get(STRETCH) == "no") == point.options.stretch))


def _refuse(folder: Path, other: list[str]) -> None:
    if other:
        names = ", ".join(name.replace("_", "-") for name in other)
        raise OutputError(f"{folder}: was made with other options ({names}); {_WAY_OUT}")
