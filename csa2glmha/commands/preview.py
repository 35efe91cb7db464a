"""What a conversion would do, how long it would take and how much memory: `convert --dry-run`."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass

import torch

from csa2glmha.compression.run import Plan
from csa2glmha.compression.workspace import FILES_FOR, ONNX_FILE
from csa2glmha.config.options import ConvertOptions
from csa2glmha.data.batches import Data
from csa2glmha.inference.memory import available_bytes, training_needs, used_bytes, whole_needs
from csa2glmha.metrics.complexity import BY_VALUES, Complexity, count_complexity, format_macs, format_params
from csa2glmha.networks import RestorationModel, run
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers
from csa2glmha.report.document import render_table
from csa2glmha.search.costs import Finish, unchanged
from csa2glmha.search.methods import methods
from csa2glmha.search.plan import CROPS, SizeSearch
from csa2glmha.search.probes import VECTORS
from csa2glmha.search.sensitivity import AT_ONCE

# Passes of one crop through the teacher that the stages take. Foretold and measured seconds on two cores:
# initialisation of Restormer of 2.6 M parameters 28 and 23, of 26 M 180 and 210 (on one core), of MST-S 19
# and 7 (it needs no factors refined); 20 steps of distillation of Restormer of 0.8 and 2.6 M parameters and
# of MST-S 12 and 12, 20 and 18, 22 and 35.
_INITIALISE_PASSES = 2.5
#: One pass, and products of all hidden channels.
_WIDTH_PASSES = 2.0
#: One pass of each network, the student's attention twice, and products of all features.
_REFIT_PASSES = 5.0
# Of a search: for the vectors of a crop, each of which goes back through the network; and for a choice. Its
# factors take as long whatever the image's size. Restormer of 2.6 M parameters: 148 seconds foretold and 145
# measured; of 26 M: 53 minutes and 39 (on one core).
_PROBE_PASSES, _CHOICE_PASSES = 2.0 * VECTORS, 0.7
#: A training step: the teacher's pass, the student's, and back.
_STEP_PASSES = 4.0
#: Held-out crops, before, between and after.
_HELD_OUT_PASSES = 6 * CROPS
#: Timing goes on for 15 seconds, or 5 rounds.
_TIMING_SECONDS = 16.0
#: PyTorch's exporter, for the teacher's plain export, takes as long as the attention layers are many.
_EXPORT_SECONDS_A_LAYER = 1.0


@dataclass(frozen=True)
class PlannedStage:
    """One part of a conversion: what it is called, and about how many seconds it takes."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Preview:
    """What a conversion would do.

    Attributes:
        lines: what is known before any work, one thing a line.
        stages: in their order.
        peak: bytes of memory that are used at most, about.
        free: bytes that there are now, those in use by this process included.
    """

    lines: tuple[str, ...]
    stages: tuple[PlannedStage, ...]
    peak: int
    free: int


def preview(
    teacher: RestorationModel,
    plan: Plan,
    data: Data,
    options: ConvertOptions,
    search: SizeSearch[RestorationModel] | None,
    output: str,
    finish: Finish[RestorationModel] = unchanged,
) -> Preview:
    """Look ahead; one crop goes through the teacher to see how fast this machine is.

    Args:
        teacher: in eval mode, on its device.
        plan: what is to be made of it.
        data: that is opened already.
        options: of the conversion.
        search: of ranks; None: they are given, or follow from shares of energy.
        output: where the results would go.
        finish: what is done to the student before it is used.
    """
    device = next(teacher.parameters()).device
    frame = data.frame(options.input_size)
    shapes = teacher.input_shapes(*frame)
    before = count_complexity(teacher, *shapes)
    lines = [
        f"network: {teacher.architecture}, {format_params(before.params)} parameters, "
        f"{format_macs(before.macs)}MAC at {frame[0]} x {frame[1]}",
        _aim(teacher, plan, frame, before.macs, options, finish),
        f"data: {data.source}: {data.training_images} images to learn from, {data.held_out_images} held out",
        *(f"note: {note}" for note in (*data.notes, *([BY_VALUES] if before.by_values else []))),
        f"device: {device}",
        f"output: {output}",
        *([f"ONNX files: {', '.join(_onnx_files(options))}"] if options.runtimes else []),
    ]
    stages = _stages(teacher, plan, data, options, search)
    return Preview(tuple(lines), tuple(stages), _peak(teacher, data, options, plan.distilled), _free(device))


def describe_preview(found: Preview) -> str:
    """The same for people."""
    rows = [
        (f"{number}. {stage.name}", in_words(stage.seconds)) for number, stage in enumerate(found.stages, 1)
    ]
    total = sum(stage.seconds for stage in found.stages)
    memory = f"memory: about {found.peak / 1e9:.1f} GB of {found.free / 1e9:.1f} GB free"
    if found.peak > found.free:
        memory += "; too much: give a smaller --batch, --crop, --calibration-size or --input-size"
    table = render_table([*rows, ("in all", in_words(total))], ("stage", "about"))
    return "\n".join(
        [*found.lines, "", table, "", memory, "nothing was written; leave out --dry-run to start"]
    )


def in_words(seconds: float) -> str:
    """A rough time: "5 s", "3 min", "2.5 h"."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _aim(
    teacher: RestorationModel,
    plan: Plan,
    frame: tuple[int, int],
    macs: int,
    options: ConvertOptions,
    finish: Finish[RestorationModel],
) -> str:
    widths = f", {options.ffn_share:g} of the feed-forward networks' channels" if plan.sizes.widths else ""
    if options.measured:
        return f"ranks: {options.ranks_in_words()}, of every layer{widths}"
    student = copy.deepcopy(teacher)
    plan.sizes.put_in(student)
    student = finish(student)
    after = count_complexity(student, *student.input_shapes(*frame))
    saved = (
        f"{format_params(after.params)} parameters, {format_macs(after.macs)}MAC ({after.macs / macs:.2f})"
    )
    layers = len(plan.sizes.configs)
    return f"ranks: {options.ranks_in_words()} in {layers} layers{widths}, which leaves {saved}"


def _stages(
    teacher: RestorationModel,
    plan: Plan,
    data: Data,
    options: ConvertOptions,
    search: SizeSearch[RestorationModel] | None,
) -> list[PlannedStage]:
    size = data.evaluation_size(options.calibration_size)
    each = _seconds_a_crop(teacher, size)
    pixels = size * size
    stages = []
    if search is not None:
        trials = sum(len(choices) for choices in search.choices.values())
        passes = math.ceil(len({name for name, _ in search.choices}) / AT_ONCE) * CROPS * _PROBE_PASSES
        stages.append(PlannedStage("search", (passes + trials * _CHOICE_PASSES) * each))
    if not plan.exact:
        crops = options.calibration_crops
        stages.append(PlannedStage("statistics and initialisation", crops * _INITIALISE_PASSES * each))
    if plan.sizes.widths:
        stages.append(PlannedStage("feed-forward widths", options.calibration_crops * _WIDTH_PASSES * each))
    if options.refit and not plan.exact:
        stages.append(
            PlannedStage("refit of output projections", options.calibration_crops * _REFIT_PASSES * each)
        )
    trained = _training_seconds(data, options, each, pixels) if plan.distilled else 0.0
    if plan.distilled:
        stages.append(PlannedStage("distillation", trained))
    height, width = data.frame(options.input_size)
    whole = each * height * width / pixels
    candidates = 3 if plan.distilled else 2
    stages.append(PlannedStage("evaluation", data.held_out_images * candidates * whole))
    if options.baselines:
        initialised = options.calibration_crops * _INITIALISE_PASSES * each
        compared = data.held_out_images * candidates * whole
        others = _other_methods(teacher, plan, options)
        stages.append(PlannedStage("other methods", others * (initialised + trained + compared)))
    stages.append(PlannedStage("ONNX export", len(_onnx_files(options)) * (3 * whole + 2)))
    if options.timing:
        layers = len(attention_layers(teacher))
        stages.append(PlannedStage("timing", _TIMING_SECONDS + layers * _EXPORT_SECONDS_A_LAYER + 5 * whole))
    return stages


def _training_seconds(data: Data, options: ConvertOptions, each: float, pixels: int) -> float:
    """Of the distillation; ``each``: seconds that a crop of so many pixels takes the teacher."""
    if options.distill_steps is None:
        return options.distill_minutes * 60
    sample = data.training(options.crop, options.seed).batch(0, 0, 1).inputs[0]
    share = sample.shape[-1] * sample.shape[-2] / pixels
    crops = options.batch * options.accumulate
    return (options.distill_steps * crops * _STEP_PASSES * share + _HELD_OUT_PASSES) * each


def _other_methods(teacher: RestorationModel, plan: Plan, options: ConvertOptions) -> int:
    widths = dict(plan.sizes.widths)
    if options.automatic and options.ffn is None:  # the search may make any of them narrower
        widths = {name: layer.hidden for name, layer in feed_forwards(teacher).items()}
    return sum(method.possible for method in methods(teacher, widths, plan.sizes.skipped, _counted))


def _counted(network: RestorationModel) -> Complexity:
    return count_complexity(network, *network.input_shapes(network.size_multiple, network.size_multiple))


def _onnx_files(options: ConvertOptions) -> list[str]:
    return [ONNX_FILE, *(FILES_FOR[name] for name in options.runtimes if name in FILES_FOR)]


@torch.inference_mode()
def _seconds_a_crop(teacher: RestorationModel, size: int) -> float:
    device = next(teacher.parameters()).device
    inputs = tuple(torch.rand(shape, device=device) for shape in teacher.input_shapes(size, size))
    seconds = []
    for _ in range(3):  # the first also sets things up
        started = time.perf_counter()
        run(teacher, inputs).sum().item()  # waits for a GPU
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _peak(teacher: RestorationModel, data: Data, options: ConvertOptions, distilled: bool) -> int:
    needs = [whole_needs(teacher, *data.frame(options.input_size))]
    if distilled:
        sample = data.training(options.crop, options.seed).batch(0, 0, 1).inputs[0]
        needs.append(training_needs(teacher, options.batch, sample.shape[-2], sample.shape[-1]))
    return used_bytes(next(teacher.parameters()).device) + max(needs)


def _free(device: torch.device) -> int:
    return available_bytes(device) + used_bytes(device)
