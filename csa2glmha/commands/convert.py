"""`convert`: files around the stages of a compression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from csa2glmha.checkpoint.student import LoadedModel, load_model
from csa2glmha.commands.preview import Preview, preview
from csa2glmha.compression.file_run import FileRun
from csa2glmha.compression.files import CONVERSION_STAGES
from csa2glmha.compression.run import Plan, Shapes, Stage, carry_out
from csa2glmha.compression.workspace import Workspace
from csa2glmha.config.options import ConvertOptions, make_options
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import UsageError
from csa2glmha.core.hub import local_file
from csa2glmha.core.progress import say, telling
from csa2glmha.data.batches import Data
from csa2glmha.data.inputs.kind import facts_of
from csa2glmha.data.open import input_kind, open_data
from csa2glmha.distill.job import check_ground_truth, check_training, identity_of
from csa2glmha.distill.processes import launched_processes
from csa2glmha.families.registry import specialise_of
from csa2glmha.metrics.evaluate import check_sizes
from csa2glmha.metrics.value_range import range_hint
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import convertible_layers
from csa2glmha.report.schema import Report
from csa2glmha.search.costs import Finish, unchanged
from csa2glmha.search.plan import SizeSearch, sensitivity_cache


@dataclass(frozen=True)
class Conversion:
    """The result of :func:`convert`.

    Attributes:
        student: the compressed network, in eval mode on the CPU.
        record: what report.json holds, as types.
        output: the folder with the files.
    """

    student: RestorationModel
    record: Report
    output: Path

    @property
    def report(self) -> dict[str, Any]:
        """What report.json holds, as JSON values."""
        return self.record.to_json()


def convert(checkpoint: str | Path, **options: Any) -> Conversion:
    """Compress a trained channel-attention model.

    Args:
        checkpoint: .pth, .pt, .ckpt or .safetensors of a supported network; a path, or an address on the
            Hugging Face Hub such as "hf://owner/name/file.pth".
        **options: fields of :class:`csa2glmha.config.options.ConvertOptions`, e.g. ``rank=8``,
            ``data="photos"``, ``degrade="noise:25"``, ``output="folder"``.

    Returns:
        The student, the report and the folder they were written to.

    Raises:
        Csa2GlmhaError: one of its subclasses; the message says what to do.

    >>> result = convert("tiny.pth", rank="full", timing=False, input_size=32, output="tiny-full")
    >>> sorted(path.name for path in result.output.iterdir())[-2:]
    ['report.md', 'student.safetensors']
    >>> result.record.complexity.after.macs < result.record.complexity.before.macs
    True
    """
    settings = make_options(**options)
    with telling():
        return run_conversion(local_file(checkpoint), settings)


def run_conversion(
    checkpoint: Path,
    options: ConvertOptions,
    how_to_resume: str = "repeat the command with --resume",
    stages: Sequence[Stage[FileRun]] | None = None,
) -> Conversion:
    """As :func:`convert`, with validated options. All checks come before any work.

    Args:
        checkpoint: a file.
        options: what to make of it.
        how_to_resume: what the user is told after an interrupt.
        stages: None: :data:`CONVERSION_STAGES`.
    """
    workspace = Workspace.of(checkpoint, options)
    if launched_processes() > 1:
        raise UsageError(
            "convert runs in one process; use convert --no-distill, and launch distill with several processes"
        )
    with workspace.held(how_to_resume):
        run = begin(checkpoint, options, workspace)
        carry_out(run, CONVERSION_STAGES if stages is None else stages)
    return Conversion(run.student, run.record, workspace.folder)


def plan_conversion(loaded: LoadedModel, options: ConvertOptions) -> Plan:
    """Check the model and the ranks, before any data is opened.

    Raises:
        UsageError: the model is a student, its family has no readers, or no layer has these ranks.
    """
    checkpoint = loaded.checkpoint.path
    if loaded.is_student:
        raise UsageError(f"{checkpoint}: is a student already; convert the teacher's checkpoint instead")
    return Plan.of(loaded.model, convertible_layers(loaded.model, checkpoint), options)


def check_data(
    teacher: RestorationModel, data: Data, options: ConvertOptions
) -> SizeSearch[RestorationModel] | None:
    """Check what the options ask of the data; the search for ranks, if there is to be one.

    Raises:
        UsageError: a ground truth is needed and not there, or the budget cannot be met.
        DataError: a held-out image cannot be evaluated on.
    """
    check_ground_truth(options, data, teacher)
    check_sizes(data.examples(options.input_size, options.seed), data.outputs)
    budget = options.budget
    if budget is None:
        return None
    shapes = _shapes_at(data.frame(options.input_size))
    return SizeSearch.prepare(teacher, data, budget, options, shapes, _finish(data, options))


def _shapes_at(frame: tuple[int, int]) -> Callable[[RestorationModel], Shapes]:
    """Shapes of a network's inputs for images of a height and width."""
    return lambda model: model.input_shapes(*frame)


@dataclass(frozen=True)
class Prepared:
    """What a conversion begins with, once all checks have passed.

    Attributes:
        device: to compute on.
        loaded: the teacher and its file.
        plan: what is to be made.
        data: opened.
        search: for ranks; None where they are given.
    """

    device: torch.device
    loaded: LoadedModel
    plan: Plan
    data: Data
    search: SizeSearch[RestorationModel] | None


def prepare_conversion(checkpoint: Path, options: ConvertOptions, workspace: Workspace) -> Prepared:
    """Open what a conversion needs and check it; nothing is written.

    Raises:
        Csa2GlmhaError: what would stop the conversion later.
    """
    device = resolve_device(options.device)
    check_training(options, device)
    loaded = load_model(checkpoint, options.weights, options)
    plan = plan_conversion(loaded, options)
    if options.resume and not plan.distilled:
        raise UsageError(
            "--resume: this conversion does not distil, there is nothing to resume; leave it out"
        )
    data = open_data(loaded.model, options)
    search = check_data(loaded.model, data, options)
    workspace.check(checkpoint, loaded.model, options)
    return Prepared(device, loaded, plan, data, search)


def begin(checkpoint: Path, options: ConvertOptions, workspace: Workspace) -> FileRun:
    """A conversion that is ready for its stages; the folder is made.

    Raises:
        Csa2GlmhaError: what would stop it later.
    """
    prepared = prepare_conversion(checkpoint, options, workspace)
    loaded, plan, data = prepared.loaded, prepared.plan, prepared.data
    layers = {name: config.to_json() for name, config in plan.sizes.configs.items()}
    source = {"the teacher": loaded.checkpoint.sha256, **weights_of(loaded)}
    identity = identity_of(options, data, {**source, "layers": layers})
    state = workspace.begin(identity, options)
    for note in (*loaded.checkpoint.notes, *data.notes):
        say(note)
    teacher = loaded.model.to(prepared.device).requires_grad_(False)
    examples = data.examples(options.input_size, options.seed)
    hint = range_hint(teacher, examples[0])
    if hint is not None:
        say(f"{teacher.architecture}: {hint}")
    torch.manual_seed(options.seed)
    searched = prepared.search is not None
    return FileRun(
        teacher=teacher,
        options=options,
        data=data,
        plan=plan,
        device=prepared.device,
        examples=examples,
        shapes=_shapes_at(data.frame(options.input_size)),
        finish=_finish(data, options),
        search=prepared.search,
        cache=sensitivity_cache(workspace.folder, loaded.checkpoint, options) if searched else None,
        states=workspace.states,
        state=state,
        log=workspace.log,
        loaded=loaded,
        workspace=workspace,
        identity=identity,
    )


def preview_conversion(checkpoint: Path, options: ConvertOptions) -> Preview:
    """What :func:`run_conversion` would do, after all of its checks; nothing is written.

    Raises:
        Csa2GlmhaError: as the conversion would.
    """
    workspace = Workspace.of(checkpoint, options)
    prepared = prepare_conversion(checkpoint, options, workspace)
    where = str(workspace.folder)
    if workspace.taken:
        where += " (holds results already: give --overwrite, or another folder)"
    teacher = prepared.loaded.model.to(prepared.device).requires_grad_(False)
    plan = prepared.plan
    return preview(
        teacher, plan, prepared.data, options, prepared.search, where, _finish(prepared.data, options)
    )


def _finish(data: Data, options: ConvertOptions) -> Finish[RestorationModel]:
    """What is done to students before they are used."""
    return unchanged if options.mask is None else partial(bake, data=data)


def bake(student: RestorationModel, data: Data) -> RestorationModel:
    """The student for the mask that was given, which is one of its inputs no more."""
    (mask,) = input_kind(facts_of(student)).constants(data).values()
    return specialise_of(student).bake(student, mask)


def weights_of(teacher: LoadedModel) -> dict[str, str]:
    """What a state must have been made from, where the teacher's file leaves a choice."""
    weights = teacher.checkpoint.weights
    return {"the teacher's weights (--weights)": weights} if weights else {}
