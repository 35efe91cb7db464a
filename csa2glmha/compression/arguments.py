"""What `compress` is given, checked and brought into the form that its stages take."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.compression.run import ModelT, Plan, Run, Shapes
from csa2glmha.config.options import ConvertOptions, make_options
from csa2glmha.core.device import resolve_device
from csa2glmha.core.errors import DataError, UsageError
from csa2glmha.core.progress import say
from csa2glmha.core.users_code import described
from csa2glmha.data.batches import Data, Example
from csa2glmha.data.given import GivenBatches, read_samples
from csa2glmha.data.open import open_data
from csa2glmha.distill import DistillSettings
from csa2glmha.distill.job import check_ground_truth, check_training, options_of
from csa2glmha.metrics.evaluate import check_sizes
from csa2glmha.metrics.outputs import outputs_like
from csa2glmha.networks import RestorationModel, run
from csa2glmha.networks.probe import takes_batches
from csa2glmha.reading.layers import attention_layers, glmha_layers, nothing_to_convert
from csa2glmha.reading.own import narrowed, read_on_part, refusals
from csa2glmha.search.plan import SizeSearch

#: Samples taken of an iterable, which may have no end.
MOST_SAMPLES = 1024
#: Options that say where files are, which are not read or written here.
_OF_FILES = (
    "data",
    "output",
    "overwrite",
    "resume",
    "mask",
    "weights",
    "baselines",
    "timing",
    "tensorboard",
    "runtimes",
)
#: Options on what a network takes and makes, where its data are a folder of images.
_OF_IMAGES = ("example", "value_range", "output_index")
_IN_MEMORY = "in:memory"


def options_from(
    rank: int | float | str, distill: bool | int | DistillSettings | None, seed: int, more: dict[str, Any]
) -> ConvertOptions:
    """The options of a conversion, from the arguments of :func:`csa2glmha.compress`.

    Raises:
        UsageError: an option that is unknown, out of range, of files, or not for this machine.
    """
    for name in _OF_FILES:
        if name in more:
            raise UsageError(f"{name}: is of files; leave it out, or use csa2glmha.convert")
    values = {"rank": rank, "seed": seed, **more}
    if distill is None or distill is False:
        values["distill"] = False
    elif isinstance(distill, DistillSettings):
        values |= options_of(distill)
    elif distill is not True:
        values["distill_steps"] = distill
    of_images = {name: values.pop(name) for name in _OF_IMAGES if name in values}
    options = make_options(**values)
    if of_images:  # the command line has them with --network alone
        checked = make_options(network=_IN_MEMORY, **of_images).model_dump(include=set(of_images))
        options = options.model_copy(update=checked)
    check_training(options, resolve_device(options.device))
    return options


def teacher_from(model: ModelT, device: torch.device) -> ModelT:
    """A copy of the network, in eval mode, float32, on the device, that is not trained.

    Raises:
        UsageError: it is no network, or a student.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(f"compress: a {type(model).__name__} is no nn.Module; csa2glmha.convert takes files")
    if glmha_layers(model):
        raise UsageError(f"compress: {type(model).__name__} is a student already; give its teacher")
    teacher = copy.deepcopy(model).to(device, torch.float32).eval()
    return teacher.requires_grad_(False)


def data_from(
    model: nn.Module,
    calibration: Iterable[Any] | str | Path,
    held_out: Iterable[Any] | None,
    options: ConvertOptions,
) -> Data:
    """The data to calibrate, train and evaluate on.

    Raises:
        UsageError: an option that does not go with it.
        DataError: it cannot be used.
    """
    if isinstance(calibration, str | Path):
        assert isinstance(model, RestorationModel)
        if held_out is not None:
            raise UsageError("held_out: of a folder some images are held out by themselves; leave it out")
        data = open_data(model, options.model_copy(update={"data": Path(calibration)}))
        check_ground_truth(options, data, model)
        return data
    if options.degrade is not None or options.targets is not None:
        raise UsageError("degrade and targets are for folders; give batches as the network takes them")
    for name in _OF_IMAGES:
        if name in options.model_fields_set:
            raise UsageError(f"{name}: is for folders of images; give batches as the network takes them")
    if options.truth_weight:
        raise UsageError("truth_weight: batches have no ground truth; leave it out")
    samples = read_samples(calibration, "calibration", MOST_SAMPLES)
    if held_out is None:
        return GivenBatches.split(samples)
    return GivenBatches(samples, read_samples(held_out, "held_out", MOST_SAMPLES))


def read_unknown(teacher: nn.Module, data: Data, options: ConvertOptions) -> None:
    """Record a network in which no family finds attention, and tell what of it is refused.

    Raises:
        DataError: it does not run on the data, or gives neither images nor logits.
        UsageError: there is none, or all of it is refused.
    """
    if attention_layers(teacher):
        return
    inputs, _ = _tried(teacher, data.examples(options.input_size, options.seed))
    device = next(teacher.parameters()).device
    readings = read_on_part(teacher, [each.to(device) for each in inputs])
    if not readings.layers:
        refused = [(each.name, each.reason) for each in readings.refused]
        raise UsageError(nothing_to_convert(type(teacher).__name__, refused))
    for line in refusals(readings, widths=options.ffn_share < 1):
        say(line)


def one_by_one(
    teacher: nn.Module, data: Data, options: ConvertOptions, distill: bool | int | DistillSettings | None
) -> tuple[ConvertOptions, bool | int | DistillSettings | None]:
    """The same settings, with one image at a time where the network mixes or refuses those of a batch.

    As many images go into a step as before: the parts of a step are as many times more.
    """
    settings = distill if isinstance(distill, DistillSettings) else options
    if isinstance(teacher, RestorationModel) or not options.distill or settings.batch == 1:
        return options, distill  # networks of ours and of the command line see to it
    inputs = narrowed(data.examples(options.input_size, options.seed)[0].inputs)
    with torch.no_grad():
        try:
            first = run(teacher, inputs)
        except Exception:  # a part may be too small for it; this is not the place to find fault with it
            return options, distill
        if takes_batches(lambda given: run(teacher, given), inputs, first):
            return options, distill
    say(f"{type(teacher).__name__} makes other outputs of several images at once: it is given one at a time")
    parts = settings.accumulate * settings.batch
    if isinstance(distill, DistillSettings):
        distill = replace(distill, batch=1, accumulate=parts)
    return options.model_copy(update={"batch": 1, "accumulate": parts}), distill


def begin(
    teacher: ModelT, data: Data, plan: Plan, options: ConvertOptions, settings: DistillSettings | None = None
) -> Run[ModelT]:
    """A compression that is ready for its stages.

    Args:
        teacher: in eval mode, on the device to compute on.
        data, plan, options: what is to be made, and of what.
        settings: of the distillation; None: those of the options.

    Raises:
        UsageError: a budget for ranks cannot be met, or not be checked.
        DataError: the network does not run on the data, gives neither images nor logits, or the data are
            too small to evaluate on.
    """
    for note in data.notes:
        say(note)
    torch.manual_seed(options.seed)
    examples = data.examples(options.input_size, options.seed)
    inputs, output = _tried(teacher, examples)
    if isinstance(data, GivenBatches):  # which do not say what the network makes of them
        data = replace(data, outputs=outputs_like(output))
    check_sizes(examples, data.outputs)

    def given_shapes(model: ModelT) -> Shapes:
        return tuple(tuple(each.shape) for each in inputs)

    budget = options.budget
    search = None if budget is None else SizeSearch.prepare(teacher, data, budget, options, given_shapes)
    return Run(
        teacher=teacher,
        search=search,
        options=options,
        data=data,
        plan=plan,
        device=next(teacher.parameters()).device,
        settings=settings,
        examples=examples,
        shapes=given_shapes,
        finish=unchanged_module,
    )


def _tried(teacher: nn.Module, examples: list[Example]) -> tuple[tuple[Tensor, ...], Tensor]:
    """The first example's inputs, and the images or logits that the network makes of them."""
    inputs, name = examples[0].inputs, type(teacher).__name__
    try:
        with torch.no_grad():
            output = run(teacher, inputs)
    except Exception as error:  # whatever the network's code raises
        reason = described(error)
        shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
        raise DataError(f"{name} does not run on inputs {shapes}: {reason}") from error
    if not isinstance(output, Tensor) or output.ndim not in (2, 4):
        raise DataError(
            f"{name} gives neither images (B, C, H, W) nor logits (B, classes); compress needs one such "
            "output"
        )
    return inputs, output


def unchanged_module(student: ModelT) -> ModelT:
    """Nothing is done."""
    return student
