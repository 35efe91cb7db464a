"""Distillation as `convert` and `distill` do it: settings, data and states from the user's options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from csa2glmha.config.affects import Affects, values_that_affect
from csa2glmha.config.data import DataOptions
from csa2glmha.config.distillation import DistillOptions
from csa2glmha.config.options import ConvertOptions, WorkOptions, flag_of
from csa2glmha.config.rank_options import RankOptions
from csa2glmha.core.errors import OutputError, UsageError
from csa2glmha.core.files import check_folder, sha256_of
from csa2glmha.core.progress import say
from csa2glmha.data.batches import Data, Inputs
from csa2glmha.distill.engine import distill
from csa2glmha.distill.held_out import HeldOut, teacher_outputs
from csa2glmha.distill.log import TrainingLog, check_tensorboard
from csa2glmha.distill.processes import check_precision, launched_processes
from csa2glmha.distill.result import DistillResult
from csa2glmha.distill.settings import LAYERS, DistillSettings
from csa2glmha.distill.stages import known_ground_truth
from csa2glmha.distill.state import State, StateFolder
from csa2glmha.families.registry import specialise_of
from csa2glmha.networks import RestorationModel

STATE_FOLDER, LOG_FILE = "state", "distill.jsonl"

#: Options whose part in an identity is told in other words: the ranks or their budget, the number of images a
#: step, and the weights that were taken, whether or not they were asked for.
_IN_OTHER_WORDS = (set(RankOptions.model_fields) - {"attention"}) | {"batch", "accumulate", "weights"}

#: By field of the settings, the option that sets it; some are called otherwise.
_CALLED = {"steps": "distill_steps", "minutes": "distill_minutes", "stages": "distill_stages"}
_OPTION_OF = {
    field.name: _CALLED.get(field.name, field.name)
    for field in fields(DistillSettings)
    if _CALLED.get(field.name, field.name) in DistillOptions.model_fields
}


def distill_settings(options: DistillOptions) -> DistillSettings:
    """The part of the options that concerns distillation."""
    return DistillSettings(**{field: getattr(options, name) for field, name in _OPTION_OF.items()})


def settings_without_option(settings: DistillSettings) -> dict[str, Any]:
    """Those that no option stands for, such as "warmup"."""
    return {name: value for name, value in asdict(settings).items() if name not in _OPTION_OF}


def options_of(settings: DistillSettings) -> dict[str, Any]:
    """The values of the options that stand for settings."""
    # Minutes do not count where there are steps, and options refuse the two together.
    left_out = None if settings.steps is None else "minutes"
    return {name: getattr(settings, field) for field, name in _OPTION_OF.items() if field != left_out}


def check_training(options: DistillOptions, device: torch.device) -> None:
    """Raise UsageError for options that this machine cannot train with."""
    check_precision(options.precision, device)
    if options.tensorboard is not None:
        check_tensorboard()
        if options.tensorboard.exists() and not options.tensorboard.is_dir():
            raise UsageError(f"--tensorboard {options.tensorboard}: is a file; give a folder")
        try:
            check_folder(options.tensorboard)
        except OutputError as error:
            cause = error.__cause__
            reason = getattr(cause, "strerror", None) or cause
            raise UsageError(f"--tensorboard {options.tensorboard}: {reason}; give another folder") from None


def check_apart(output: Path, options: DataOptions) -> None:
    """Refuse an output folder inside a folder of images, where the next run would take pictures for images.

    Raises:
        UsageError: it is inside.
    """
    place = output.resolve()
    for name in ("data", "targets"):
        folder = getattr(options, name)
        if folder is not None and place.is_relative_to(folder.resolve()):
            raise UsageError(
                f"-o {output}: is inside --{name} {folder}, whose images are read with those of all folders "
                "in it, pictures of reports too; choose a place outside"
            )


def check_ground_truth(options: WorkOptions, data: Data, teacher: RestorationModel) -> None:
    """Raise UsageError if a ground truth of the teacher's outputs is to be learned and there is none."""
    if options.truth_weight and options.distill_stages != LAYERS:
        sample = data.training(options.crop, options.seed + 2).batch(0, 0, 1)
        height, width = sample.inputs[0].shape[-2:]
        known_ground_truth(sample, torch.empty(teacher.output_shape(height, width)))


def identity_of(options: ConvertOptions, data: Data, more: Mapping[str, Any]) -> dict[str, Any]:
    """What a run must share with a state to go on from it, by the name that the user knows it by.

    Args:
        options: all of them count that decide about the weights.
        data: the numbers of its images count.
        more: hashes and shapes of the networks, and which weights of their files were taken.
    """
    values = values_that_affect(Affects.WEIGHTS, options)
    for name in ("data", "targets", "mask"):
        path = getattr(options, name)
        values[name] = None if path is None else str(path.resolve())
    identity = {
        "the ranks": options.ranks_in_words(),
        **more,
        **{flag_of(name): value for name, value in values.items() if name not in _IN_OTHER_WORDS},
    }
    identity["the number of images a step"] = options.batch * options.accumulate * launched_processes()
    identity["the number of images"] = [data.training_images, data.held_out_images]
    if options.mask is not None:
        identity["the mask"] = sha256_of(options.mask)
    return identity


def find_state(states: StateFolder, options: WorkOptions) -> State | None:
    """The state to resume from; None begins.

    Raises:
        OutputError: there is one, and nobody asked to resume or overwrite it.
        CheckpointError, UsageError: as :meth:`StateFolder.load`.
    """
    states.check_place(options.overwrite and not options.resume)
    if options.resume:
        state = states.load()
        where = f"{states.path}: there is no state, starting" if state is None else f"{states.path}: resuming"
        say(f"{where} from {'the beginning' if state is None else f'step {state.position.taken}'}")
        return state
    if not options.overwrite:
        states.check_free()
    return None


def held_out_crops(data: Data, options: WorkOptions) -> list[Inputs]:
    """Inputs of the held-out images that decide which weights are kept."""
    side = data.evaluation_size(options.calibration_size)
    return data.calibration(side, data.outputs.samples, options.seed + 1, held_out=True)


@dataclass(frozen=True)
class DistillJob:
    """One distillation of a user's.

    Attributes:
        options: of them those on distillation, data, device and seed.
        data: to train on, and to evaluate on while training.
        states: where they are kept; None keeps none.
        log: path of the record; None keeps none.
        settings: None: those of the options.
    """

    options: WorkOptions
    data: Data
    states: StateFolder | None
    log: Path | None
    settings: DistillSettings | None = None

    def run(self, student: nn.Module, teacher: nn.Module, state: State | None) -> DistillResult:
        """Train the student in place, from a state or from the beginning.

        Raises:
            Csa2GlmhaError: as :func:`csa2glmha.distill.distill`.
        """
        options = self.options
        teacher.requires_grad_(False)
        student.requires_grad_(True)
        if options.mask is not None:
            specialise_of(student).freeze(student)
        result = distill(
            student,
            teacher,
            self.data.training(options.crop, options.seed + 2),
            self._held_out(teacher),
            self.settings or distill_settings(options),
            say,
            states=self.states,
            state=state,
            log=TrainingLog(self.log, options.tensorboard, append=state is not None),
        )
        gain = result.after - result.before
        scale = result.scale
        gained = f" ({gain:+.2f})" if scale.unit else ""
        say(f"{scale.label} on {scale.what}: {scale.change(result.before, result.after)}{gained}")
        return result

    def _held_out(self, teacher: nn.Module) -> HeldOut:
        """Crops of the held-out images; images with their ground truth where that takes part."""
        options = self.options
        if options.truth_weight:
            examples = self.data.examples(options.calibration_size, options.seed + 1)
            ground_truths = [
                example.ground_truth.unsqueeze(0) for example in examples if example.ground_truth is not None
            ]
            known = ground_truths if len(ground_truths) == len(examples) else None
            return teacher_outputs(teacher, [example.inputs for example in examples], known)
        return teacher_outputs(teacher, held_out_crops(self.data, options))
