"""The pipeline: load, measure, initialise, distil, export, report."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from csa2glmha.analysis.measure import analyse_layer
from csa2glmha.attention.glmha import GLMHAConfig
from csa2glmha.bench.compare import compare_with_teacher
from csa2glmha.checkpoint import Checkpoint
from csa2glmha.checkpoint.student import (
    STUDENT_FILE,
    LoadedModel,
    load_model,
    save_student,
    student_metadata,
    teacher_weights,
    weight_bytes,
)
from csa2glmha.commands.preview import Preview, preview
from csa2glmha.config.options import ConvertOptions, make_options
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import ExportError, OutputError, UsageError
from csa2glmha.core.files import (
    atomic_path,
    check_not_inputs,
    check_room,
    ensure_writable,
    prepare_output_dir,
)
from csa2glmha.core.hub import beside, local_file, teacher_source
from csa2glmha.core.locks import exclusive_file, exclusive_folder
from csa2glmha.core.progress import is_first_process, say
from csa2glmha.core.stages import CONVERSION, Stages
from csa2glmha.data.batches import Data, Example, Inputs
from csa2glmha.data.identity import describe_images
from csa2glmha.data.images import write_image
from csa2glmha.data.inputs.kind import facts_of
from csa2glmha.data.inputs.masks import is_made_for, mask_provenance
from csa2glmha.data.open import as_trained, input_kind, input_provenance, open_data
from csa2glmha.distill import DistillResult, State, StateFolder
from csa2glmha.distill.job import (
    LOG_FILE,
    STATE_FOLDER,
    DistillJob,
    check_apart,
    check_training,
    check_truth,
    find_state,
    identity_of,
    load_initial,
    save_initial,
)
from csa2glmha.distill.processes import launched_processes, process_device
from csa2glmha.distill.state import resumable, with_room
from csa2glmha.export.metadata import onnx_metadata
from csa2glmha.export.onnx import export_onnx
from csa2glmha.families.registry import specialise_of
from csa2glmha.initialize import initialise_student
from csa2glmha.initialize.configure import layer_config, plan_layers
from csa2glmha.metrics.comparisons import compare_images
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.metrics.evaluate import check_sizes, judge, restore
from csa2glmha.metrics.pictures import comparison, plot_spectra, spectral_comparison
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers, glmha_layers
from csa2glmha.report.card import CARD_FILE, replaceable, write_card
from csa2glmha.report.document import PICTURE_FILE, REPORT_FILES, SPECTRA_FILE, write_report
from csa2glmha.report.html import HTML_FILE, write_html
from csa2glmha.report.record import Measurements, build_report
from csa2glmha.report.schema import Report
from csa2glmha.search.baselines import BaselineJob
from csa2glmha.search.costs import Finish, unchanged
from csa2glmha.search.plan import RankSearch, measured_ranks, sensitivity_cache

ONNX_FILE = "model.onnx"
OUTPUT_FILES = (
    STUDENT_FILE,
    ONNX_FILE,
    *REPORT_FILES,
    HTML_FILE,
    PICTURE_FILE,
    SPECTRA_FILE,
    CARD_FILE,
    LOG_FILE,
)


@dataclass(frozen=True)
class Conversion:
    """The result of :func:`convert`.

    Attributes:
        student: the compressed network, in eval mode on the CPU.
        record: everything that was measured.
        output: the folder with the files.
    """

    student: RestorationModel
    record: Report
    output: Path

    @property
    def report(self) -> dict[str, Any]:
        """What report.json holds."""
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
    """
    settings = make_options(**options)
    return run_conversion(local_file(checkpoint), settings)


def run_conversion(
    checkpoint: Path, options: ConvertOptions, how_to_resume: str = "repeat the command with --resume"
) -> Conversion:
    """As :func:`convert`, with validated options. All checks come before any work.

    ``how_to_resume`` is what the user is told after an interrupt.
    """
    output = options.output or Path(default_output(checkpoint, options))
    if launched_processes() > 1:
        raise UsageError(
            "convert runs in one process; use convert --no-distill, and launch distill with several processes"
        )
    with resumable(output / STATE_FOLDER, how_to_resume), exclusive_folder(output):
        return _run_conversion(checkpoint, options, output)


@dataclass(frozen=True)
class Plan:
    """What a conversion is to make, as far as model and options tell.

    Attributes:
        configs: of every layer; empty where the ranks follow from measurements.
        exact: nothing is approximated.
        distilled: the student is trained.
    """

    configs: dict[str, GLMHAConfig]
    exact: bool
    distilled: bool


def plan_conversion(loaded: LoadedModel, options: ConvertOptions) -> Plan:
    """Check the model and the ranks, before any data is opened.

    Raises:
        UsageError: the model is a student, or has no layers of these ranks.
    """
    checkpoint = loaded.checkpoint.path
    layers = attention_layers(loaded.model)
    if loaded.is_student:
        raise UsageError(f"{checkpoint}: is a student already; convert the teacher's checkpoint instead")
    planned = plan_layers(layers, options.ranks, options.attention)
    configs = {} if options.measured else planned
    exact = not options.measured and all(config.full for config in configs.values())
    return Plan(configs, exact, not exact and options.distill and options.distill_steps != 0)


def check_data(teacher: RestorationModel, data: Data, options: ConvertOptions) -> RankSearch | None:
    """Check what the options ask of the data; the search for ranks, if there is to be one.

    Raises:
        UsageError: a ground truth is needed and not there, or the budget cannot be met.
        DataError: a held-out image cannot be judged on.
    """
    check_truth(options, data, teacher.out_channels)
    check_sizes(data.examples(options.input_size, options.seed))
    finish = _finish(data, options)
    return RankSearch.prepare(teacher, data, options, finish) if options.automatic else None


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
    search: RankSearch | None


def prepare_conversion(checkpoint: Path, options: ConvertOptions, output: Path) -> Prepared:
    """Open what a conversion needs and check it; nothing is written.

    Raises:
        Csa2GlmhaError: what would stop the conversion later.
    """
    device = resolve_device(options.device)
    check_training(options, device)
    loaded = load_model(checkpoint, options.weights)
    plan = plan_conversion(loaded, options)
    data = open_data(loaded.model, options)
    search = check_data(loaded.model, data, options)
    check_apart(output, options)
    names = [output / name for name in OUTPUT_FILES]
    check_not_inputs(names, checkpoint, options.mask)
    # The student is no larger than its teacher, and its ONNX file neither.
    check_room(output, 2 * weight_bytes(loaded.model), [*names, output / STATE_FOLDER])
    return Prepared(device, loaded, plan, data, search)


def preview_conversion(checkpoint: Path, options: ConvertOptions) -> Preview:
    """What :func:`run_conversion` would do, after all of its checks; nothing is written.

    Raises:
        Csa2GlmhaError: as the conversion would.
    """
    output = options.output or Path(default_output(checkpoint, options))
    prepared = prepare_conversion(checkpoint, options, output)
    there = [name for name in OUTPUT_FILES if (output / name).exists()]
    where = f"{output} (holds results already: give --overwrite, or another folder)" if there else str(output)
    teacher = prepared.loaded.model.to(prepared.device).requires_grad_(False)
    plan = prepared.plan
    return preview(teacher, plan.configs, prepared.data, options, prepared.search, plan.distilled, where)


def _stage_names(plan: Plan, options: ConvertOptions) -> list[str]:
    wanted = {
        "ranks": options.measured,
        "distill": plan.distilled,
        "baselines": options.baselines,
        "latency": options.timing,
    }
    return [name for name in CONVERSION if wanted.get(name, True)]


def _run_conversion(checkpoint: Path, options: ConvertOptions, output: Path) -> Conversion:
    prepared = prepare_conversion(checkpoint, options, output)
    device, loaded, plan = prepared.device, prepared.loaded, prepared.plan
    data, search, teacher = prepared.data, prepared.search, loaded.model
    configs, exact, distilled = plan.configs, plan.exact, plan.distilled
    layers = attention_layers(teacher)
    layer_configs = {name: config.to_json() for name, config in configs.items()}
    source = {"the teacher": loaded.checkpoint.sha256, **_weights_of(loaded)}
    identity = identity_of(options, data, {**source, "layers": layer_configs})
    states = StateFolder(output / STATE_FOLDER, identity, options.state_minutes, say)
    state = _prepare_output(output, states, options, distilled)
    for note in (*loaded.checkpoint.notes, *data.notes):
        say(note)

    stage = Stages(_stage_names(plan, options))
    seconds = stage.seconds
    torch.manual_seed(options.seed)
    teacher.to(device).requires_grad_(False)
    found = None
    if state is not None:
        student, fits, seconds["initialise"], found = load_initial(states)
        configs = {name: layer.config for name, layer in glmha_layers(student).items()}
        student.to(device)
    else:
        inputs = None if exact else _calibration_inputs(data, options)
        statistics = None
        if options.measured and inputs is not None:
            with stage("ranks"):
                cache = sensitivity_cache(output, loaded.checkpoint, options)
                ranks, statistics, found = measured_ranks(teacher, options, inputs, search, cache)
            configs = {name: layer_config(layers[name].form, each) for name, each in ranks.items()}
        with stage("initialise"):
            student, fits = initialise_student(teacher, configs, inputs, statistics, analyse_layer)
        del statistics
    distilled = distilled and not all(config.full for config in configs.values())
    examples = data.examples(options.input_size, options.seed)
    candidates = {"teacher": restore(teacher)}
    distillation = None
    if distilled:
        candidates["initialisation"] = restore(copy.deepcopy(student))
        if state is None:
            states.clear()
            metadata = student_metadata(student, loaded.checkpoint.sha256, options.seed, {})
            save_initial(states, student, metadata, fits, seconds["initialise"], found)
        with stage("distill"):
            distillation = DistillJob(options, data, states, output / LOG_FILE).run(student, teacher, state)
        seconds["distill"] = distillation.seconds
    student = _finish(data, options)(student)
    candidates["student"] = restore(student)
    with stage("judge"):
        quality = judge(candidates, examples, "teacher", data.spectral)
    frame = data.frame(options.input_size)
    compared, baselines = None, None
    if options.baselines:
        with stage("baselines"):
            baselines = _baselines(teacher, distillation, data, examples, options, identity, output)
            compared = baselines.run(
                count_complexity(student, *student.input_shapes(*data.frame(options.input_size))).macs
            )
    student.cpu().eval()
    teacher.cpu()
    measured = Measurements(
        loaded,
        options,
        data,
        configs,
        fits,
        count_complexity(teacher, *teacher.input_shapes(*frame)),
        count_complexity(student, *student.input_shapes(*frame)),
        seconds,
        frame,
        distillation,
        quality,
        describe_images(data, examples),
        device=str(device),
        search=found,
        baselines=compared,
    )
    metadata = student_metadata(
        student,
        loaded.checkpoint.sha256,
        options.seed,
        provenance(options)
        | teacher_source(checkpoint)
        | teacher_weights(loaded.checkpoint)
        | input_provenance(teacher, options),
    )
    # What is left of an earlier run belongs to another student; a card may have been edited.
    kept = {STUDENT_FILE} | ({LOG_FILE} if distillation is not None else set())
    kept |= set() if replaceable(output / CARD_FILE) else {CARD_FILE}
    stale = [output / name for name in OUTPUT_FILES if name not in kept]
    taken = 0 if distillation is None else distillation.steps
    with_room(states, lambda: _replace_student(output, student, metadata, stale), taken)
    example = examples[0].inputs[0]
    described = onnx_metadata(
        output.name, student.architecture, student.hyperparameters, metadata, student.inputs
    )
    with stage("export"):
        try:
            measured.export = with_room(
                states,
                lambda: export_onnx(student, output / ONNX_FILE, metadata=described, example=example),
            )
        except ExportError as error:
            raise ExportError(f"{error}; the student itself is kept in {output / STUDENT_FILE}") from error
    if options.timing:
        with stage("latency"):
            files = {"student": output / ONNX_FILE}
            try:
                measured.latency = compare_with_teacher(teacher, files, frame, example=example, beside=output)
            except Exception as error:  # a report without this figure is better than none
                measured.latency_missing = str(error) or type(error).__name__
                say(f"not timed: {measured.latency_missing}; the report goes without the latency")
    with_room(states, lambda: _write_pictures(output, teacher, student, examples[0], data.spectral))
    measured.comparisons = compare_images(examples, restore(teacher), restore(student), data.spectral)
    record = build_report(measured)
    report = record.to_json()
    with_room(states, lambda: write_report(output, record))
    with_room(states, lambda: write_html(output, report, measured.comparisons))
    with_room(states, lambda: write_card(output, report))
    if baselines is not None:
        baselines.clear()
    states.clear()
    return Conversion(student, record, output)


def _replace_student(
    output: Path, student: RestorationModel, metadata: dict[str, str], stale: list[Path]
) -> None:
    """Put a student in the place of an earlier one, whose other files go: never are two students' mixed."""

    def clear() -> None:
        for path in stale:
            path.unlink(missing_ok=True)

    save_student(output / STUDENT_FILE, student, metadata, before_replacing=clear)


def _baselines(
    teacher: RestorationModel,
    distillation: DistillResult | None,
    data: Data,
    examples: list[Example],
    options: ConvertOptions,
    identity: dict[str, Any],
    output: Path,
) -> BaselineJob:
    """The comparison with other methods, in as many steps as the student took."""
    steps = 0 if distillation is None else distillation.steps
    return BaselineJob(
        teacher,
        options.model_copy(update={"distill_steps": steps}),
        data,
        examples,
        _calibration_inputs(data, options),
        {**identity, "the steps": steps},
        output,
        _finish(data, options),
    )


def _finish(data: Data, options: ConvertOptions) -> Finish:
    """What is done to students before they are used."""
    return unchanged if options.mask is None else partial(_bake, data=data)


def _bake(student: RestorationModel, data: Data) -> RestorationModel:
    """The student for the mask that was given, which is one of its inputs no more."""
    (mask,) = input_kind(facts_of(student)).constants(data).values()
    return specialise_of(student).bake(student, mask)


def _weights_of(teacher: LoadedModel) -> dict[str, str]:
    """What a state must have been made from, where the teacher's file leaves a choice."""
    weights = teacher.checkpoint.weights
    return {"the teacher's weights (--weights)": weights} if weights else {}


def provenance(options: ConvertOptions) -> dict[str, str]:
    """What a student file says of its making."""
    made = {"ranks": options.ranks_in_words(), "task": options.degrade or "", "attention": options.attention}
    return made if options.mask is None else made | mask_provenance(options.mask, options.mask_key)


def default_output(checkpoint: Path, options: ConvertOptions) -> str:
    """The folder results go to when none is named: "<checkpoint>-rank8" beside nothing but the caller."""
    budget = options.budget
    if budget is not None:
        return f"{checkpoint.stem}-rankauto{str(budget).replace(' ', '').replace('--', '-')}"
    named = options.ranks.k is not None or options.shares[0] is not None
    rank = f"rank{options.rank}" if named else "full"
    ranks = {"q": options.rank_q, "k": options.rank_k, "v": options.rank_v, "pos": options.rank_pos}
    extra = "".join(f"-{name}{value}" for name, value in ranks.items() if value is not None)
    compact = "-compact" if options.attention == "compact" else ""
    return f"{checkpoint.stem}-{rank}{extra}{compact}"


def _calibration_inputs(data: Data, options: ConvertOptions) -> list[Inputs]:
    say(f"measuring attention statistics on {options.calibration_crops} crops")
    return data.calibration(options.calibration_size, options.calibration_crops, options.seed)


def _prepare_output(
    output: Path, states: StateFolder, options: ConvertOptions, distilled: bool
) -> State | None:
    """Make the output folder; returns the state to resume from, if that is wanted and there is one.

    Raises:
        OutputError: something is in the way.
        CheckpointError, UsageError: states cannot be used.
    """
    if options.resume and not distilled:
        raise UsageError(
            "--resume: this conversion does not distil, there is nothing to resume; leave it out"
        )
    state = find_state(states, options)
    if options.resume and state is None and not options.overwrite and (output / REPORT_FILES[0]).exists():
        raise OutputError(
            f"--resume: {output} holds a finished conversion; pass --overwrite to start over, or choose "
            "another folder with -o"
        )
    # A run that is killed early leaves a log without a state.
    names = [name for name in OUTPUT_FILES if name != LOG_FILE or not options.resume]
    prepare_output_dir(output, names, options.overwrite or state is not None)
    return state


def _write_pictures(
    output: Path, teacher: RestorationModel, student: RestorationModel, example: Example, spectral: bool
) -> None:
    """Teacher, student and their difference on one image; of spectra also those of a few pixels."""
    before, after = restore(teacher)(example.inputs), restore(student)(example.inputs)
    if spectral:
        write_image(output / PICTURE_FILE, spectral_comparison(before, after, example.truth))
        with atomic_path(output / SPECTRA_FILE) as temporary:
            plot_spectra(temporary, before, after, example.truth)
    else:
        picture = comparison(example.inputs[0][0], before, after, example.truth)
        write_image(output / PICTURE_FILE, picture)


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
        **_weights_of(original),
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
        network = _bake(network, data)
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
