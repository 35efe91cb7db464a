"""Distillation: a student learns its teacher's layers, then its output."""

from csa2glmha.distill.engine import distill
from csa2glmha.distill.held_out import HeldOut, agreement, teacher_outputs
from csa2glmha.distill.log import TrainingLog
from csa2glmha.distill.result import DistillResult
from csa2glmha.distill.settings import DistillSettings
from csa2glmha.distill.state import State, StateFolder

__all__ = [
    "DistillResult",
    "DistillSettings",
    "HeldOut",
    "State",
    "StateFolder",
    "TrainingLog",
    "agreement",
    "distill",
    "teacher_outputs",
]
