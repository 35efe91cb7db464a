"""What distillation did."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class DistillResult:
    """What distillation did.

    Attributes:
        steps: taken, those of resumed runs included.
        seconds: spent, evaluations and earlier runs included.
        before, after: PSNR in dB between student and teacher on the held-out crops.
        best_step: the step whose weights were kept; 0 is the initialisation.
        skipped: steps left out because loss or gradient was not finite.
        stopped: why training ended before its budget; "" if it did not.
        stages: one entry per stage: stage, steps, seconds, before, after.
        curve: one entry per evaluation: stage, step (of all stages), psnr to the teacher, minutes, and
            where there were steps before it the loss, a running mean in the stage's own units.
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

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)
