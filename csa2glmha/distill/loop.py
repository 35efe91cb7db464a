"""Short distillation of a student against its teacher's output."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from csa2glmha.data.batches import Inputs, TrainingBatches
from csa2glmha.errors import Csa2GlmhaError
from csa2glmha.models.base import run
from csa2glmha.progress import manual_progress

#: Steps that are timed, and kept, before the length of the rest is known.
TIMED_STEPS = 3


@dataclass(frozen=True)
class DistillSettings:
    """How long and how hard to train.

    Attributes:
        steps: optimizer steps; None chooses as many as fit into ``minutes``.
        minutes: the time budget when ``steps`` is None.
        batch, crop: crops per step and their side in pixels.
        learning_rate: peak of the schedule (linear warm-up, half cosine to zero). The student starts
            close to its teacher: rates that suit training from scratch throw that away.
        warmup: share of the steps spent warming up.
        evaluations: times the held-out crops are looked at.
    """

    steps: int | None = None
    minutes: float = 6.0
    batch: int = 4
    crop: int = 96
    learning_rate: float = 1e-4
    warmup: float = 0.1
    evaluations: int = 8
    max_steps: int = 5000


@dataclass(frozen=True)
class HeldOut:
    """Batches of inputs kept away from training, each with the teacher's outputs, (B, C, S, S)."""

    inputs: Sequence[Inputs]
    teacher: Sequence[Tensor]


@dataclass
class DistillResult:
    """What distillation did.

    Attributes:
        steps: taken.
        seconds: spent, evaluations included.
        before, after: PSNR in dB between student and teacher on the held-out crops.
        best_step: the step whose weights were kept; 0 is the initialisation.
        curve: one entry per evaluation: step, loss, PSNR to the teacher.
    """

    steps: int = 0
    seconds: float = 0.0
    before: float = 0.0
    after: float = 0.0
    best_step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


def agreement(model: nn.Module, held_out: HeldOut) -> float:
    """Mean PSNR in dB between a model's outputs and the teacher's, data range 1."""
    scores = []
    with torch.no_grad():
        for inputs, expected in zip(held_out.inputs, held_out.teacher, strict=True):
            error = (run(model, inputs).cpu() - expected).square().mean((1, 2, 3))
            scores.append(-10 * error.clamp(1e-20, 1e20).log10())
    return float(torch.cat(scores).double().mean())


def teacher_outputs(teacher: nn.Module, inputs: Sequence[Inputs]) -> HeldOut:
    """Held-out inputs with the teacher's outputs, on the CPU."""
    with torch.no_grad():
        return HeldOut(inputs, [run(teacher, each).cpu() for each in inputs])


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: TrainingBatches,
    held_out: HeldOut,
    settings: DistillSettings,
    say: Callable[[str], None] = lambda _: None,
) -> DistillResult:
    """Train ``student`` in place to reproduce ``teacher``.

    The weights that agree best with the teacher on the held-out crops are kept, those of the
    initialisation among them, so the result is never worse there than the start. An interrupt
    (KeyboardInterrupt) is passed on after the best weights so far are back in the student.

    Args:
        student, teacher: on the same device, in eval mode.
        batches: training data; their truth is not used here.
        held_out: decides what is kept.
        settings: length and step sizes.
        say: is told, before the bulk of the work, about how long it will take.

    Raises:
        Csa2GlmhaError: the loss is not finite.
    """
    result = DistillResult()
    started = time.monotonic()
    result.before = result.after = agreement(student, held_out)
    result.curve.append({"step": 0, "psnr": result.before})
    best = copy.deepcopy(student.state_dict())
    evaluation_seconds = time.monotonic() - started

    def evaluate(step: int) -> None:
        nonlocal best
        score = agreement(student, held_out)
        if not math.isfinite(score):
            return  # the next step's loss says so, or there is none and the best weights are kept
        result.curve.append({"step": step, "loss": training.loss, "psnr": score})
        if score > result.after:
            result.after, result.best_step = score, step
            best = copy.deepcopy(student.state_dict())

    training = _Run(student, teacher, batches, settings)
    try:
        total = settings.steps
        planned = settings.max_steps if total is None else total
        if planned == 0:
            return result
        timed = time.monotonic()
        for step in range(min(TIMED_STEPS, planned)):
            training.step(step, planned)
            if step == 0:
                timed = time.monotonic()  # the first step also allocates and tunes kernels
        seconds_per_step = (time.monotonic() - timed) / max(min(TIMED_STEPS, planned) - 1, 1)
        if total is None:
            budget = settings.minutes * 60 - settings.evaluations * evaluation_seconds
            planned = max(min(int(budget / max(seconds_per_step, 1e-6)), settings.max_steps), TIMED_STEPS)
        seconds = planned * seconds_per_step + settings.evaluations * evaluation_seconds
        say(f"distilling for {planned} steps, about {_duration(seconds)}")
        every = max(planned // settings.evaluations, 1)
        if planned <= TIMED_STEPS:
            evaluate(planned)
        with manual_progress(what="distilling", unit="step", total=planned) as bar:
            bar.update(min(TIMED_STEPS, planned))
            for step in range(min(TIMED_STEPS, planned), planned):
                training.step(step, planned)
                bar.set_postfix(loss=f"{training.loss:.2e}", psnr=f"{training.psnr:.2f}", refresh=False)
                bar.update()
                if (step + 1) % every == 0 or step + 1 == planned:
                    evaluate(step + 1)
    finally:
        student.load_state_dict(best)
        result.steps, result.seconds = training.taken, time.monotonic() - started
    return result


class _Run:
    """Optimizer, schedule and running figures of one distillation."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: TrainingBatches,
        settings: DistillSettings,
    ) -> None:
        self.student, self.teacher, self.batches, self.settings = student, teacher, batches, settings
        # The gradient near the teacher is mostly noise: a short second moment (0.99) made the agreement
        # swing by 3 dB between evaluations, 0.999 does not.
        self.optimizer = torch.optim.Adam(student.parameters(), settings.learning_rate, betas=(0.9, 0.999))
        self.taken = 0
        self.loss = self.psnr = 0.0

    def step(self, step: int, total: int) -> None:
        """One optimizer step at its place in a schedule of ``total`` steps."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * schedule(step, total, self.settings.warmup)
        count = self.settings.batch
        inputs = self.batches.batch(step, step * count, count).inputs
        with torch.no_grad():
            expected = run(self.teacher, inputs)
        difference = run(self.student, inputs) - expected
        loss = difference.abs().mean()
        if not torch.isfinite(loss):
            raise Csa2GlmhaError(
                f"distillation: the loss is {loss.item()} at step {step + 1}; "
                "lower the learning rate, or look for invalid images in the data"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.taken += 1
        self.loss = loss.item()
        psnr = -10 * math.log10(max(difference.detach().square().mean().item(), 1e-20))
        self.psnr = psnr if self.taken == 1 else 0.95 * self.psnr + 0.05 * psnr


def schedule(step: int, total: int, warmup: float) -> float:
    """Learning-rate factor: linear warm-up over a share of the steps, then a half cosine to zero."""
    warm = max(int(total * warmup), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
