"""The student that a training began with, kept beside its states for the report of a resumed run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from csa2glmha.checkpoint import read_checkpoint
from csa2glmha.checkpoint.student import load_into, save_student
from csa2glmha.core.errors import CheckpointError
from csa2glmha.core.strict_json import dumps
from csa2glmha.distill.state import StateFolder
from csa2glmha.distill.state_files import INITIAL_FILE
from csa2glmha.initialize import LayerFit
from csa2glmha.initialize.refit import RefitError, Refitted
from csa2glmha.networks import RestorationModel


@dataclass(frozen=True)
class Initial:
    """A student before its training, and what is told of its making.

    Attributes:
        student: the network.
        fits: of its attention layers.
        width_errors: of its feed-forward networks that are narrower than the teacher's.
        refitted: what came of its refit; None where there was none.
        seconds: that each stage of its making took.
        found: what a search for ranks reports.
    """

    student: RestorationModel
    fits: Mapping[str, LayerFit]
    width_errors: Mapping[str, float]
    refitted: Refitted | None
    seconds: Mapping[str, float]
    found: dict[str, Any] | None = None


def save_initial(states: StateFolder, initial: Initial, metadata: dict[str, str]) -> None:
    """Keep the student that training begins with beside the states.

    Raises:
        OutputError: it cannot be written.
    """
    told = {
        "fits": {name: asdict(fit) | {"clusters": None} for name, fit in initial.fits.items()},
        "width_errors": dict(initial.width_errors),
        "refitted": None if initial.refitted is None else asdict(initial.refitted),
        "seconds": dict(initial.seconds),
        "search": initial.found,
    }
    states.path.mkdir(parents=True, exist_ok=True)
    more = {name: dumps(value) for name, value in told.items()}
    save_student(states.path / INITIAL_FILE, initial.student, metadata | more)


def load_initial(states: StateFolder, teacher: RestorationModel) -> Initial:
    """What training began with.

    Raises:
        CheckpointError: it is not there, or damaged.
    """
    checkpoint = read_checkpoint(states.path / INITIAL_FILE)
    student, metadata = load_into(checkpoint, teacher), checkpoint.metadata
    try:
        return Initial(
            student,
            {name: LayerFit(**fit) for name, fit in json.loads(metadata["fits"]).items()},
            {name: float(error) for name, error in json.loads(metadata["width_errors"]).items()},
            _refitted(json.loads(metadata["refitted"])),
            {stage: float(seconds) for stage, seconds in json.loads(metadata["seconds"]).items()},
            json.loads(metadata["search"]),
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"--resume: {states.path / INITIAL_FILE} is damaged; start over with --overwrite and without "
            "--resume"
        ) from error


def _refitted(told: Any) -> Refitted | None:
    """As it was stored."""
    if told is None:
        return None
    layers = {name: RefitError(**error) for name, error in told["layers"].items()}
    return Refitted(bool(told["kept"]), told["metric"], float(told["before"]), float(told["after"]), layers)
