"""What `evaluate` does: any model file against images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csa2glmha.checkpoint.foreign import as_of_student
from csa2glmha.config.options import WorkOptions
from csa2glmha.core.errors import UsageError
from csa2glmha.core.files import sha256_of
from csa2glmha.core.hub import display_name
from csa2glmha.core.progress import progress, say
from csa2glmha.core.strict_json import json_number
from csa2glmha.data.batches import Example
from csa2glmha.export.runtime import RUNTIMES
from csa2glmha.inference.model import OpenModel, open_model
from csa2glmha.metrics.evaluate import Restore
from csa2glmha.metrics.outputs import Meter, Outputs
from csa2glmha.metrics.quality import CHANNEL_NAMES, RANGE_HINT, SSIM_WINDOW, QualityMeter
from csa2glmha.metrics.value_range import range_hint
from csa2glmha.report.document import render_table
from csa2glmha.report.metrics import Metric, metrics_of

#: Opens a model, as :func:`~csa2glmha.inference.model.open_model`.
Opener = Callable[..., OpenModel]


def _open_both(
    model: Path, teacher: Path | None, options: WorkOptions, opener: Opener
) -> tuple[OpenModel, OpenModel | None]:
    """Both models; --weights chooses the teacher's where there is one, if not those it was converted from.

    Raises:
        UsageError: they are for different images.
    """
    if teacher is None:
        return opener(model, options.device, options.weights, options), None
    opened = opener(model, options.device, network=options)
    options = as_of_student(opened.metadata, options)
    weights, made_from = options.weights, opened.metadata
    known = weights is None and "teacher_weights" in made_from and teacher.is_file()
    if known and made_from.get("teacher_sha256") == sha256_of(teacher):
        weights = made_from["teacher_weights"]
    # A runtime of ONNX files is the model's alone, where the teacher is none.
    device = "auto" if options.device in RUNTIMES and teacher.suffix.lower() != ".onnx" else options.device
    other = opener(teacher, device, weights, options)
    if (other.channels, other.bands) != (opened.channels, opened.bands):
        raise UsageError(
            f"--teacher {teacher}: turns {other.channels} channels into {other.bands}, {model} turns "
            f"{opened.channels} into {opened.bands}; give the checkpoint that it was made from"
        )
    return opened, other


def evaluate_file(
    model: Path,
    options: WorkOptions,
    teacher: Path | None,
    crop: int | None,
    channel: str = "rgb",
    opener: Opener = open_model,
) -> dict[str, Any]:
    """Quality of a model, per image and on average, as JSON values.

    Args:
        model: checkpoint, student or ONNX file.
        options: of them those on weights, data, device and seed.
        teacher: also compare with this model's outputs.
        crop: evaluate on the central square of this side; None takes whole images.
        channel: "rgb", or "y": PSNR and SSIM of :func:`~csa2glmha.metrics.quality.luma`.
        opener: opens model and teacher.

    Raises:
        UsageError: nothing to compare with: neither targets, a degradation, nor a teacher.
        Csa2GlmhaError: a file or folder cannot be used.
    """
    if crop is not None and crop < SSIM_WINDOW:
        raise UsageError(f"--crop {crop}: give a side in pixels, at least {SSIM_WINDOW}, which SSIM needs")
    opened, other = _open_both(model, teacher, options, opener)
    kind, facts = opened.kind, opened.facts
    stretched, outputs = kind.stretches(facts, options), kind.outputs(facts)
    colour = outputs.name == "images" and opened.bands == 3
    if channel == "y" and not colour:
        raise UsageError(f"--channel y: {model} makes no colour images; leave it out")
    examples, notes = kind.open_examples(facts, options, teacher is not None, crop)
    for note in notes:
        say(note)
    usual = CHANNEL_NAMES.get(opened.bands) if outputs.name == "images" else None
    # Read to the first that is fit for it, before any is run on.
    if other is None and all(example.ground_truth is None for example in examples):
        raise UsageError(
            f"{options.data}: no ground truth to compare with; give --teacher to compare with its outputs"
        )
    for network in (opened.network, None if other is None else other.network):
        hint = None if network is None else range_hint(network, examples[0])
        if network is not None and hint is not None:
            say(f"{network.architecture}: {hint}")
    meters = _measure(opened.run, None if other is None else other.run, examples, outputs, channel == "y")
    return {
        "model": display_name(model),
        "data": None if options.data is None else str(options.data),
        "degradation": options.degrade,
        "stretched": stretched,
        "seed": options.seed,
        "channel": channel if channel == "y" else usual,
        "notes": list(notes),
        "images": len(examples),
        **_figures_of(meters, outputs),
    }


@dataclass
class _Meters:
    """What was measured of the images.

    Attributes:
        input, ground_truth: inputs and outputs against the ground truth.
        teacher: outputs against the teacher's.
        beyond: outputs that reach far beyond [0, 1].
    """

    input: Meter
    ground_truth: Meter
    teacher: Meter
    beyond: int = 0


def _measure(
    run: Restore, reference: Restore | None, examples: Sequence[Example], outputs: Outputs, of_luma: bool
) -> _Meters:
    if of_luma:
        meters = _Meters(*_of_luma())
    else:
        meters = _Meters(outputs.to_ground_truth(), outputs.to_ground_truth(), outputs.to_teacher())
    for index in progress(range(len(examples)), what="evaluating", unit="image"):
        example = examples[index]
        output = run(example.inputs)
        meters.beyond += int(outputs.out_of_range(output))
        output = outputs.comparable(output)
        if example.ground_truth is not None:
            meters.ground_truth.add(example.name, output, example.ground_truth)
            given = example.inputs[0][0]
            if given.shape == example.ground_truth.shape:
                meters.input.add(example.name, given.clamp(0, 1), example.ground_truth)
        if reference is not None:
            meters.teacher.add(example.name, output, outputs.comparable(reference(example.inputs)))
    if meters.beyond:
        say(f"{meters.beyond} of {len(examples)} outputs reach far beyond [0, 1]: {RANGE_HINT}")
    return meters


def _of_luma() -> tuple[Meter, Meter, Meter]:
    return QualityMeter(of_luma=True), QualityMeter(of_luma=True), QualityMeter(of_luma=True)


def _figures_of(meters: _Meters, outputs: Outputs) -> dict[str, Any]:
    """What was measured of each kind, where anything was, as JSON values."""
    named = {"input": meters.input, "ground_truth": meters.ground_truth, "teacher": meters.teacher}
    beyond: dict[str, Any] = {"outputs_out_of_range": meters.beyond} if outputs.name == "spectra" else {}
    return beyond | {name: _figures(meter) for name, meter in named.items() if meter.images}


def _figures(meter: Meter) -> dict[str, Any]:
    """Mean and values of every image, as JSON values."""
    bands = meter.bands()
    return {
        "mean": {key: json_number(value) for key, value in meter.mean().items()},
        **({"bands": bands} if bands else {}),
        "per_image": {
            quality.name: {key: json_number(value) for key, value in quality.values.items()}
            for quality in meter.images
        },
    }


def describe_evaluation(found: dict[str, Any]) -> str:
    """The same for people."""
    labels = {
        "input": "input against ground truth",
        "ground_truth": "output against ground truth",
        "teacher": "output against teacher",
    }
    known = [key for key in labels if key in found]
    named = {name for key in known for name in found[key]["mean"]}
    metrics = [metric for metric in metrics_of(found["channel"]) if metric.name in named]
    rows = [
        (labels[key], *(_cell(metric, found[key]["mean"].get(metric.name)) for metric in metrics))
        for key in known
    ]
    columns = (metric.column or metric.label for metric in metrics)
    return render_table(rows, (f"{found['model']}, {found['images']} images", *columns))


def _cell(metric: Metric, value: float | str | None) -> str:
    if value is None:
        return ""
    return metric.number(value, "ground_truth") + metric.unit if isinstance(value, float) else str(value)
