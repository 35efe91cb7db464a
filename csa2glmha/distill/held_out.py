"""How close a student is to its teacher, on images that it is not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from csa2glmha.data.batches import Inputs
from csa2glmha.networks import run


@dataclass(frozen=True)
class HeldOut:
    """Batches of inputs kept away from training, each with the teacher's outputs, (B, C, H, W).

    Attributes:
        inputs, teacher: one entry a batch.
        ground_truth: likewise, where it takes part in the training; None where it does not.
    """

    inputs: Sequence[Inputs]
    teacher: Sequence[Tensor]
    ground_truth: Sequence[Tensor] | None = None


def teacher_outputs(
    teacher: nn.Module, inputs: Sequence[Inputs], ground_truth: Sequence[Tensor] | None = None
) -> HeldOut:
    """Held-out inputs with the teacher's outputs, on the CPU."""
    with torch.no_grad():
        return HeldOut(inputs, [run(teacher, each).cpu() for each in inputs], ground_truth)


def agreement(model: nn.Module, held_out: HeldOut) -> float:
    """Mean PSNR in dB between a model's outputs and the teacher's, data range 1."""
    return float(decibels(errors(model, held_out)[0]).mean())


def errors(model: nn.Module, held_out: HeldOut, first: int = 0, every: int = 1) -> tuple[Tensor, Tensor]:
    """Mean squared errors of every image to the teacher and to the ground truth (zero without), float64.

    Args:
        model: in eval mode.
        held_out: what to look at.
        first, every: of its batches look at number ``first``, ``first + every``, ... only.
    """
    to_teacher, to_ground_truth = [torch.zeros(0).double()], [torch.zeros(0).double()]
    with torch.no_grad():
        for index in range(first, len(held_out.inputs), every):
            output = run(model, held_out.inputs[index]).cpu()
            to_teacher.append(_mean_square(output - held_out.teacher[index]))
            ground_truth = output if held_out.ground_truth is None else held_out.ground_truth[index]
            to_ground_truth.append(_mean_square(output - ground_truth))
    return torch.cat(to_teacher), torch.cat(to_ground_truth)


def decibels(error: Tensor) -> Tensor:
    """PSNR of mean squared errors, data range 1; finite wherever the error is not NaN."""
    return -10 * error.clamp(1e-20, 1e20).log10()


def _mean_square(difference: Tensor) -> Tensor:
    return difference.square().mean((1, 2, 3)).double()
