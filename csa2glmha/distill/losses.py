"""What a difference costs."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

#: From a difference of any shape to its mean cost, a scalar.
Loss = Callable[[Tensor], Tensor]

#: The Charbonnier loss is quadratic below this difference, and nearly linear above it. Students start some
#: hundredths away from their teachers.
CHARBONNIER_SCALE = 1e-3


def l1(difference: Tensor) -> Tensor:
    """The mean absolute difference."""
    return difference.abs().mean()


def l2(difference: Tensor) -> Tensor:
    """The mean squared difference."""
    return difference.square().mean()


def charbonnier(difference: Tensor) -> Tensor:
    """The mean of sqrt(d^2 + s^2), s = :data:`CHARBONNIER_SCALE`.

    Source: Charbonnier et al., "Two deterministic half-quadratic regularization algorithms for computed
    imaging", ICIP 1994.
    """
    return (difference.square() + CHARBONNIER_SCALE**2).sqrt().mean()


LOSSES: dict[str, Loss] = {"l1": l1, "charbonnier": charbonnier, "l2": l2}

#: Logits are divided by this before the student learns their softmax: classes that are not first count more.
TEMPERATURE = 2.0


def softened_divergence(logits: Tensor, expected: Tensor) -> Tensor:
    """KL divergence of softened logits (B, classes), the mean over a batch, times the temperature squared.

    Source: Hinton, Vinyals, Dean, "Distilling the knowledge in a neural network", 2015.
    """
    student, teacher = (F.log_softmax(each / TEMPERATURE, dim=-1) for each in (logits, expected))
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * TEMPERATURE**2


def output_loss(name: str, output: Tensor, expected: Tensor) -> Tensor:
    """Of a student's output: of images the loss of this name, of logits the divergence of softened ones."""
    return softened_divergence(output, expected) if output.ndim == 2 else LOSSES[name](output - expected)


def truth_loss(name: str, output: Tensor, truth: Tensor) -> Tensor:
    """Likewise against the ground truth: of logits the cross-entropy with the true class, one-hot."""
    return F.cross_entropy(output, truth) if output.ndim == 2 else LOSSES[name](output - truth)
