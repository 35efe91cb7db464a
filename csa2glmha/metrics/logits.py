"""Logits of classes, compared with a teacher's and with the true class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from csa2glmha.core.errors import DataError
from csa2glmha.metrics.quality import Quality

#: Names of the metrics in records.
TOP1, KL, CROSS_ENTROPY = "top1", "kl", "cross_entropy"


def divergence(logits: Tensor, expected: Tensor) -> Tensor:
    """The Kullback-Leibler divergence KL(p || q) in nats, (B,), in float64.

    Args:
        logits: (B, classes), whose softmax is q, the student's.
        expected: likewise of p, the teacher's.
    """
    q, p = (F.log_softmax(each.double(), dim=-1) for each in (logits, expected))
    # Rounding may bring it below zero, where the two are the same.
    return (p.exp() * (p - q)).sum(-1).clamp_min(0)


def cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Of (B, classes) against the true classes, one-hot of the same shape: (B,) in nats, in float64."""
    return -(truth.double() * F.log_softmax(logits.double(), dim=-1)).sum(-1)


def same_class(logits: Tensor, expected: Tensor) -> Tensor:
    """Whether the largest of (B, classes) is the same in both, (B,)."""
    return logits.argmax(-1) == expected.argmax(-1)


_Metric = Callable[[Tensor, Tensor], Tensor]
_TO_TEACHER: dict[str, _Metric] = {TOP1: same_class, KL: divergence}
_TO_TRUTH: dict[str, _Metric] = {TOP1: same_class, CROSS_ENTROPY: cross_entropy}


@dataclass
class LogitMeter:
    """Measures images one by one and averages over them; as :class:`csa2glmha.metrics.quality.QualityMeter`.

    The metrics are ``top1``, the share of images for which both have the same class first, and, against a
    teacher's logits, ``kl`` in nats; against the true class, ``cross_entropy`` in nats.

    Attributes:
        of_truth: references are true classes, one-hot, not logits.
        images: what was measured so far, in order.
    """

    of_truth: bool = False
    images: list[Quality] = field(default_factory=list)

    def add(self, name: str, output: Tensor, reference: Tensor) -> Quality:
        """Measure the logits (classes,) of one image, and keep the result under this name.

        Raises:
            DataError: the two are not of the same classes.
        """
        if output.shape != reference.shape or output.ndim != 1:
            raise DataError(
                f"{name}: {tuple(output.shape)} and {tuple(reference.shape)} are no logits of the same "
                "classes"
            )
        metrics = _TO_TRUTH if self.of_truth else _TO_TEACHER
        pair = output.cpu()[None], reference.cpu()[None]
        self.images.append(Quality(name, {key: float(measure(*pair)) for key, measure in metrics.items()}))
        return self.images[-1]

    def mean(self) -> dict[str, float]:
        """The mean of every metric over the images.

        Raises:
            DataError: no image was added.
        """
        if not self.images:
            raise DataError("there are no images to average over: evaluate at least one")
        values = {key: [image.values[key] for image in self.images] for key in self.images[0].values}
        return {key: float(torch.tensor(each, dtype=torch.float64).mean()) for key, each in values.items()}

    def bands(self) -> dict[str, list[float]]:
        """Classes are no bands: nothing."""
        return {}
