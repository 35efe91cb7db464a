"""Running models over images and measuring what comes out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from csa2glmha.core.errors import DataError
from csa2glmha.core.progress import manual_progress, say
from csa2glmha.core.strict_json import json_number
from csa2glmha.data.batches import Example, Inputs
from csa2glmha.metrics.outputs import IMAGES, Meter, Outputs
from csa2glmha.metrics.quality import RANGE_HINT, psnr
from csa2glmha.networks import run

#: A model as a function from inputs with a batch axis of one to an output (C, H, W) or (classes,) on the CPU.
Restore = Callable[[Inputs], Tensor]


def restore(model: torch.nn.Module) -> Restore:
    """The model as such a function, computed on the model's device."""

    def restored(inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return run(model, inputs)[0].cpu()

    return restored


@dataclass(frozen=True)
class Evaluation:
    """Quality of one model's outputs, means over images, which are clipped to [0, 1] first.

    Attributes:
        ground_truth: metrics against the ground truth, empty if there is none.
        teacher: metrics against the teacher's output, empty for the teacher itself.
        ground_truth_bands, teacher_bands: of spectra, the metrics that have a value for every band.
        out_of_range: of spectra, how many outputs reached far beyond [0, 1] before that.
    """

    ground_truth: dict[str, float]
    teacher: dict[str, float]
    ground_truth_bands: dict[str, list[float]] = field(default_factory=dict)
    teacher_bands: dict[str, list[float]] = field(default_factory=dict)
    out_of_range: int = 0

    def to_json(self) -> dict[str, Any]:
        """JSON values; infinities as text."""
        means = {"ground_truth": self.ground_truth, "teacher": self.teacher}
        bands = {"ground_truth_bands": self.ground_truth_bands, "teacher_bands": self.teacher_bands}
        found: dict[str, Any] = {
            key: {name: json_number(value) for name, value in values.items()}
            for key, values in means.items()
            if values
        }
        if self.out_of_range:
            found["outputs_out_of_range"] = self.out_of_range
        return found | {
            key: {name: [json_number(value) for value in listed] for name, listed in values.items()}
            for key, values in bands.items()
            if values
        }


def check_sizes(examples: Sequence[Example], outputs: Outputs) -> None:
    """Raise DataError for an image that :func:`evaluate` could not measure, before there is work to lose."""
    for example in examples:
        height, width = example.inputs[0].shape[-2:]
        if min(height, width) < outputs.smallest:
            raise DataError(
                f"{example.name}: {width}x{height} pixels are too few to evaluate on, SSIM needs "
                f"{outputs.smallest}x{outputs.smallest}; leave it out"
            )


def psnr_to_ground_truth(model: Restore, examples: Sequence[Example]) -> float:
    """Mean PSNR of the outputs to the ground truth, where that is known, as :func:`evaluate` gives it."""
    known = [(each.inputs, each.ground_truth) for each in examples if each.ground_truth is not None]
    values = [psnr(model(inputs).clamp(0, 1), ground_truth) for inputs, ground_truth in known]
    return sum(values) / len(values)


def evaluate(
    models: dict[str, Restore],
    examples: list[Example],
    reference: str | None = None,
    outputs: Outputs = IMAGES,
) -> dict[str, Evaluation]:
    """Run every model over every image.

    Args:
        models: by name.
        examples: what to run on.
        reference: the name of the model that the others are compared with, the teacher.
        outputs: what the models make.
    """
    against_ground_truth = {name: outputs.to_ground_truth() for name in models}
    against_teacher = {name: outputs.to_teacher() for name in models}
    beyond = dict.fromkeys(models, 0)
    order = sorted(models, key=lambda name: name != reference)
    with manual_progress(what="evaluating", unit="image", total=len(examples) * len(models)) as bar:
        for example in examples:
            expected = None
            for name in order:
                output = models[name](example.inputs)
                beyond[name] += int(outputs.out_of_range(output))
                output = outputs.comparable(output)
                if name == reference:
                    expected = output
                if example.ground_truth is not None:
                    against_ground_truth[name].add(example.name, output, example.ground_truth)
                if name != reference and expected is not None:
                    against_teacher[name].add(example.name, output, expected)
                bar.update()

    if reference is not None and beyond[reference]:
        say(
            f"the {reference}'s outputs reach far beyond [0, 1] on {beyond[reference]} of {len(examples)} "
            f"held-out images: {RANGE_HINT}"
        )

    def means(meter: Meter) -> dict[str, float]:
        return meter.mean() if meter.images else {}

    return {
        name: Evaluation(
            means(ground_truth), means(teacher), ground_truth.bands(), teacher.bands(), beyond[name]
        )
        for name in models
        for ground_truth, teacher in [(against_ground_truth[name], against_teacher[name])]
    }
