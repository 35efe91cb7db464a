"""How close a student is to its teacher, on images that it is not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from csa2glmha.data.batches import Inputs
from csa2glmha.metrics.outputs import Outputs, outputs_like
from csa2glmha.networks import run


@dataclass(frozen=True)
class HeldOut:
    """Batches of inputs kept away from training, each with the teacher's outputs, images or logits.

    Attributes:
        inputs, teacher: one entry a batch.
        ground_truth: likewise, where it takes part in the training; None where it does not.
    """

    inputs: Sequence[Inputs]
    teacher: Sequence[Tensor]
    ground_truth: Sequence[Tensor] | None = None

    @property
    def outputs(self) -> Outputs:
        """The kind of the outputs."""
        return outputs_like(self.teacher[0])


def teacher_outputs(
    teacher: nn.Module, inputs: Sequence[Inputs], ground_truth: Sequence[Tensor] | None = None
) -> HeldOut:
    """Held-out inputs with the teacher's outputs, on the CPU."""
    with torch.no_grad():
        return HeldOut(inputs, [run(teacher, each).cpu() for each in inputs], ground_truth)


def agreement(model: nn.Module, held_out: HeldOut) -> float:
    """How a model agrees with the teacher on the scale of its outputs: mean PSNR in dB, or KL divergence."""
    return float(held_out.outputs.figures(errors(model, held_out)[0]).mean())


def errors(model: nn.Module, held_out: HeldOut, first: int = 0, every: int = 1) -> tuple[Tensor, Tensor]:
    """Errors of every image to the teacher and to the ground truth (zero without), float64.

    They are mean squares of images; of logits the KL divergence, and to the true class the cross-entropy.

    Args:
        model: in eval mode.
        held_out: what to look at.
        first, every: of its batches look at number ``first``, ``first + every``, ... only.
    """
    to_teacher, to_ground_truth = [torch.zeros(0).double()], [torch.zeros(0).double()]
    outputs = held_out.outputs
    with torch.no_grad():
        for index in range(first, len(held_out.inputs), every):
            output = run(model, held_out.inputs[index]).cpu()
            to_teacher.append(outputs.errors(output, held_out.teacher[index]))
            known = None if held_out.ground_truth is None else held_out.ground_truth[index]
            none = torch.zeros(len(output)).double()
            to_ground_truth.append(none if known is None else outputs.truth_errors(output, known))
    return torch.cat(to_teacher), torch.cat(to_ground_truth)
