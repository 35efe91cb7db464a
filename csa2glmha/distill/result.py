"""What distillation did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from csa2glmha.metrics.outputs import PSNR_SCALE, SCALES, Scale


@dataclass
class DistillResult:
    """What distillation did.

    Attributes:
        steps: taken, those of resumed runs included.
        seconds: spent, evaluations and earlier runs included.
        before, after: agreement with the teacher on the held-out crops, by the metric.
        best_step: the step whose weights were kept; 0 is the initialisation.
        skipped: steps left out because loss or gradient was not finite.
        stopped: why training ended before its budget; "" if it did not.
        stages: one entry per stage: stage, steps, seconds, before, after.
        curve: one entry per evaluation: stage, step (of all stages), the metric by its name, minutes, and
            where there were steps before it the loss, a running mean in the stage's own units.
        metric: "psnr" to the teacher in dB, or of logits "kl", the divergence from it in nats.
    """

    steps: int = 0
    seconds: float = 0.0
    before: float = 0.0
    after: float = 0.0
    best_step: int = 0
    skipped: int = 0
    stopped: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    metric: str = PSNR_SCALE.metric

    @property
    def scale(self) -> Scale:
        """How the metric is told."""
        return SCALES[self.metric]

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)
