"""Running models over images and measuring what comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from csa2glmha.data.crops import ImageSource
from csa2glmha.data.degrade import Degradation
from csa2glmha.progress import manual_progress
from csa2glmha.report.quality import QualityMeter, json_value

Restore = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class EvaluationImage:
    """One input (C, H, W) with its ground truth (C', H, W), where known."""

    name: str
    input: Tensor
    truth: Tensor | None


def evaluation_images(
    images: ImageSource, degradation: Degradation | None, seed: int, size: int | None = None
) -> list[EvaluationImage]:
    """Inputs for judging; degraded with one seeded generator per image, so that order does not matter.

    Args:
        images: clean ones if there is a degradation, otherwise inputs.
        degradation: makes the inputs.
        seed: of the degradation.
        size: cut to the central square of at most this side; None keeps whole images.
    """
    return [evaluation_image(images, index, degradation, seed, size) for index in range(len(images))]


def evaluation_image(
    images: ImageSource, index: int, degradation: Degradation | None, seed: int, size: int | None = None
) -> EvaluationImage:
    """One of :func:`evaluation_images`."""
    name, image, truth = images.read(index)
    image, truth = _centre(image, size), None if truth is None else _centre(truth, size)
    if degradation is not None:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        image, truth = degradation(image, generator), _wanted(image)
    return EvaluationImage(name, image, truth)


def _wanted(clean: Tensor) -> Tensor | None:
    """What to make of an input that was clean; None if that is not known.

    Of dual-pixel views (6, H, W) it is one view if they are the same.
    """
    if clean.shape[0] != 6:
        return clean
    left, right = clean.chunk(2)
    return left if torch.equal(left, right) else None


def _centre(image: Tensor, size: int | None) -> Tensor:
    if size is None:
        return image
    top, left = (max(side - size, 0) // 2 for side in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


def restore(model: torch.nn.Module) -> Restore:
    """The model as a function on one image (C, H, W), computed on the model's device, returned on the CPU."""
    device = next(model.parameters()).device

    def run(image: Tensor) -> Tensor:
        with torch.no_grad():
            return model(image.unsqueeze(0).to(device))[0].cpu()

    return run


@dataclass(frozen=True)
class Judged:
    """Quality of one model's outputs, means over images; values clipped to [0, 1] first.

    Attributes:
        truth: PSNR and SSIM against the ground truth, empty if there is none.
        teacher: PSNR and SSIM against the teacher's output, empty for the teacher itself.
    """

    truth: dict[str, float]
    teacher: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """JSON values; infinities as text."""
        return {
            key: {name: json_value(value) for name, value in values.items()}
            for key, values in (("truth", self.truth), ("teacher", self.teacher))
            if values
        }


def judge(
    models: dict[str, Restore], images: list[EvaluationImage], reference: str | None = None
) -> dict[str, Judged]:
    """Run every model over every image.

    Args:
        models: by name.
        images: what to run on.
        reference: the name of the model that the others are compared with, the teacher.
    """
    against_truth = {name: QualityMeter() for name in models}
    against_teacher = {name: QualityMeter() for name in models if name != reference}
    order = sorted(models, key=lambda name: name != reference)
    with manual_progress(what="judging", unit="image", total=len(images) * len(models)) as bar:
        for image in images:
            expected = None
            for name in order:
                output = models[name](image.input).clamp(0, 1)
                if name == reference:
                    expected = output
                if image.truth is not None:
                    against_truth[name].add(image.name, output, image.truth)
                if name != reference and expected is not None:
                    against_teacher[name].add(image.name, output, expected)
                bar.update()
    return {
        name: Judged(
            against_truth[name].mean() if against_truth[name].images else {},
            against_teacher[name].mean() if name in against_teacher and against_teacher[name].images else {},
        )
        for name in models
    }
