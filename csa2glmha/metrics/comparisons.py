"""What a few held-out images show: pictures to compare, and the figures that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from csa2glmha.core.strict_json import json_number
from csa2glmha.data.batches import Example
from csa2glmha.metrics.evaluate import Restore
from csa2glmha.metrics.pictures import (
    DIFFERENCE_GAIN,
    PIXELS_SHOWN,
    as_large_as,
    colourful_pixels,
    spread_evenly,
)
from csa2glmha.metrics.quality import psnr

#: So many held-out images are shown, of spectra so many of their bands.
IMAGES_SHOWN, BANDS_SHOWN = 3, 3
#: Longer sides are cut to this many pixels in the middle: details show, and pages stay small.
LONGEST_SIDE = 384


@dataclass(frozen=True)
class Panel:
    """One picture (C, H, W), C = 1 or 3.

    ``role`` is "input", "teacher", "student", "difference" or "ground_truth"; ``note`` says what is seen
    of it.
    """

    role: str
    image: Tensor
    note: str = ""


@dataclass(frozen=True)
class View:
    """One way to show an image, e.g. a band of it: panels of one size."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Comparison:
    """Everything to be seen of one image, and its entry in the report."""

    views: tuple[View, ...]
    figures: dict[str, Any]


def compare_images(
    examples: Sequence[Example], teacher: Restore, student: Restore, spectral: bool
) -> list[Comparison]:
    """Run teacher and student on the first few examples.

    Args:
        examples: held-out images.
        teacher, student: the models.
        spectral: outputs are bands of a spectrum.
    """
    return [
        compare_image(each, teacher(each.inputs), student(each.inputs), spectral)
        for each in examples[:IMAGES_SHOWN]
    ]


def compare_image(example: Example, before: Tensor, after: Tensor, spectral: bool) -> Comparison:
    """The comparison of teacher's and student's output on one example, (C, H, W) each.

    PSNR is that of the whole image, pictures and spectra are of its middle where it is large.
    """
    before, after, ground_truth = before.clamp(0, 1), after.clamp(0, 1), example.ground_truth
    figures: dict[str, Any] = {"name": example.name, "psnr_to_teacher": json_number(psnr(after, before))}
    if ground_truth is not None:
        figures |= {
            "teacher_psnr": json_number(psnr(before, ground_truth)),
            "student_psnr": json_number(psnr(after, ground_truth)),
        }
    given, before, after = (
        _middle(each) for each in (as_large_as(example.inputs[0][0], before), before, after)
    )
    ground_truth = None if ground_truth is None else _middle(ground_truth)
    figures |= {"shown_height": before.shape[-2], "shown_width": before.shape[-1]}
    if not spectral:
        view = _view("image", Panel("input", _colour(given)), before, after, ground_truth, _colour)
        return Comparison((view,), figures)
    figures["spectra"] = spectra_at(before, after, ground_truth)
    return Comparison(tuple(_spectral_views(given, before, after, ground_truth)), figures)


def spectra_at(teacher: Tensor, student: Tensor, ground_truth: Tensor | None) -> list[dict[str, Any]]:
    """Spectra (bands, H, W) at the most colourful pixels that are apart from each other, as JSON values."""
    found = []
    for row, column in colourful_pixels(teacher, PIXELS_SHOWN):
        values = {"teacher": teacher, "student": student} | (
            {} if ground_truth is None else {"ground_truth": ground_truth}
        )
        found.append(
            {"row": row, "column": column}
            | {
                name: [round(value, 5) for value in cube[:, row, column].tolist()]
                for name, cube in values.items()
            }
        )
    return found


def _spectral_views(given: Tensor, before: Tensor, after: Tensor, ground_truth: Tensor | None) -> list[View]:
    """False colours and a few bands, each with a brightness of its own: that of the teacher's output."""
    shown_input = Panel("input", given)
    if len(given) not in (1, 3):
        mean = given.mean(0, keepdim=True)
        shown_input = Panel("input", mean / _white(mean), "mean of the bands")
    bands = len(before)
    white = _white(before)
    views = [
        _view(
            "false colour", shown_input, before, after, ground_truth, lambda cube: _false_colour(cube) / white
        )
    ]
    for band in spread_evenly(bands, BANDS_SHOWN):
        views.append(
            _view(
                f"band {band + 1} of {bands}",
                shown_input,
                before[band : band + 1],
                after[band : band + 1],
                None if ground_truth is None else ground_truth[band : band + 1],
                partial(_divided, _white(before[band])),
            )
        )
    return views


def _view(
    title: str,
    given: Panel,
    before: Tensor,
    after: Tensor,
    ground_truth: Tensor | None,
    show: Callable[[Tensor], Tensor],
) -> View:
    difference = after - before
    panels = [
        given,
        Panel("teacher", show(before)),
        Panel("student", show(after)),
        Panel("difference", 0.5 + DIFFERENCE_GAIN * _as_shown(difference)),
    ]
    if ground_truth is not None:
        panels.append(Panel("ground_truth", show(ground_truth)))
    return View(title, tuple(replace(each, image=each.image.clamp(0, 1)) for each in panels))


def _divided(by: float, image: Tensor) -> Tensor:
    return image / by


def _as_shown(image: Tensor) -> Tensor:
    return _false_colour(image) if len(image) > 3 else _colour(image)


def _colour(image: Tensor) -> Tensor:
    """Three channels or one; of two views, six channels, the first."""
    return image[:3] if len(image) >= 3 else image[:1]


def _false_colour(cube: Tensor) -> Tensor:
    """Red, green and blue: the means of the last, middle and first third of the bands."""
    if len(cube) < 3:
        return cube[:1]
    return torch.stack([part.mean(0) for part in reversed(cube.tensor_split(3))])


def _white(image: Tensor) -> float:
    return max(float(np.quantile(image.numpy(), 0.995)), 1e-3)


def _middle(image: Tensor) -> Tensor:
    """At most :data:`LONGEST_SIDE` pixels of each side, in the middle."""
    for axis in (-2, -1):
        length = image.shape[axis]
        size = min(length, LONGEST_SIDE)
        image = image.narrow(axis, (length - size) // 2, size)
    return image
