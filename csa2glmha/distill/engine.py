"""The training itself: stages, schedule, evaluations, states.

Every number that decides about the weights is a function of the step and of what the state holds, so a run
that was stopped at any moment and resumed gives the weights of one that was not.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from csa2glmha.core.errors import CheckpointError, Csa2GlmhaError, OutputError
from csa2glmha.core.interrupt import StopRequest
from csa2glmha.core.progress import manual_progress
from csa2glmha.data.batches import Batch, TrainingBatches
from csa2glmha.distill import schedule
from csa2glmha.distill.feed import feed
from csa2glmha.distill.held_out import HeldOut, errors
from csa2glmha.distill.log import STEPS_PER_ENTRY, TrainingLog
from csa2glmha.distill.optimizer import make_optimizer
from csa2glmha.distill.processes import Processes
from csa2glmha.distill.result import DistillResult
from csa2glmha.distill.settings import END, LAYERS, DistillSettings
from csa2glmha.distill.stages import Objective, approximate_layers, make_stage
from csa2glmha.distill.state import Position, State, StateFolder
from csa2glmha.metrics.outputs import figure_of

#: Steps that are timed, and kept, before the length of a stage is known; the first is left out of the median,
#: since it also allocates memory and chooses kernels. They are taken at a small share of the learning rate.
TIMED_STEPS, TIMED_RATE = 5, 0.01
#: Steps in a row without finite loss and gradient after which training stops.
MAX_SKIPPED = 10
#: Weight of the newest step in running means.
RUNNING = 0.05


def distill(
    student: nn.Module,
    teacher: nn.Module,
    batches: TrainingBatches,
    held_out: HeldOut,
    settings: DistillSettings,
    say: Callable[[str], None] = lambda _: None,
    *,
    states: StateFolder | None = None,
    state: State | None = None,
    log: TrainingLog | None = None,
) -> DistillResult:
    """Train ``student`` in place to reproduce ``teacher``.

    The weights that agree best with the teacher on the held-out crops are kept, those of the
    initialisation among them, so the result is never worse there than the start. Ctrl-C and SIGTERM
    end the current step and save a state; then KeyboardInterrupt is raised, with the best weights so far in
    the student.

    Args:
        student, teacher: on the same device, in eval mode. What of the student does not require a gradient
            is not trained. Of several processes, the first one's weights count.
        batches: training data; random access by step is what makes resuming exact.
        held_out: decides what is kept.
        settings: budget, stages and step sizes.
        say: is told what goes on, in single lines.
        states: where to save states from time to time; None saves none.
        state: to go on from, of the same settings and data; None begins.
        log: a record, not open yet.

    Raises:
        UsageError: a precision that the device lacks, or a weight for a ground truth that is not there.
        CheckpointError: the state does not fit the student.
    """
    processes = Processes(next(student.parameters()).device, settings.precision)
    if not processes.main:
        log, say = None, lambda _: None
    training = _Training(student, teacher, batches, held_out, settings, say, processes, states)
    try:
        with log or TrainingLog() as training.log:
            training.begin(state)
            return training.run(state)
    finally:
        student.load_state_dict(training.best)
        if processes.count > 1:
            processes.close()


class _Training:
    """One distillation: what it works on, and where it is."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: TrainingBatches,
        held_out: HeldOut,
        settings: DistillSettings,
        say: Callable[[str], None],
        processes: Processes,
        states: StateFolder | None,
    ) -> None:
        self.student, self.teacher = student, teacher
        self.batches, self.held_out = batches, held_out
        self.settings, self.say, self.processes = settings, say, processes
        self.outputs, self.scale = held_out.outputs, held_out.outputs.scale
        self.states = states if processes.main else None
        self.log = TrainingLog()
        self.at = Position()
        self.best = _copy(student)
        self.started = self.saved = time.monotonic()
        self.names = [
            name for name in settings.stage_names if name != LAYERS or approximate_layers(student, teacher)
        ]

    @property
    def seconds(self) -> float:
        """Spent, in earlier runs too."""
        return time.monotonic() - self.started

    # --- the whole

    def begin(self, state: State | None) -> None:
        """Take up a state, or look at the initialisation."""
        if state is not None:
            try:
                self.student.load_state_dict(state.best)
                self.best = _copy(self.student)
                self.student.load_state_dict(state.student)
            except RuntimeError as error:
                raise CheckpointError(
                    "--resume: the state's weights do not fit this student; start over with --overwrite and "
                    "without --resume"
                ) from error
            self.at = state.position
            self.started -= self.at.seconds
            self.log.write("resume", step=self.at.taken)
            return
        self.processes.same_weights(self.student)
        self.best = _copy(self.student)
        at = self.at
        figure, at.score = self.look()
        at.before = at.figure = at.stage_before = figure
        at.curve.append({"stage": "start", "step": 0, self.scale.metric: figure, "minutes": self.minutes()})
        self.log.write("start", **at.curve[0])

    def run(self, state: State | None) -> DistillResult:
        """All stages that are left."""
        at = self.at
        if self.settings.steps == 0:
            return self.result()
        with StopRequest() as stop:
            if state is None:
                self.save(None)
            while at.stage < len(self.names) and not at.stopped:
                self.run_stage(self.names[at.stage], stop, state)
                state = None
            self.save(None)
            if stop.made:
                raise KeyboardInterrupt
        result = self.result()
        self.log.write("end", **result.to_json())
        return result

    def result(self) -> DistillResult:
        """As far as it got."""
        at = self.at
        return DistillResult(
            at.taken,
            self.seconds,
            at.before,
            at.figure,
            at.best_step,
            at.skipped,
            at.stopped,
            at.stages,
            at.curve,
            self.scale.metric,
        )

    # --- a stage

    def run_stage(self, name: str, stop: StopRequest, state: State | None) -> None:
        """One stage, from where it is to its end; the best weights of all are in the student then."""
        at = self.at
        if at.planned is None and self.settings.steps is not None:
            share = self.settings.layer_share if name == LAYERS and END in self.names else 1.0
            at.planned = max(round(self.settings.steps * share) - at.taken, 0)
        if not at.scores:
            at.scores.append(at.score)
        if at.planned != 0:
            inputs = list(self.held_out.inputs)
            stage = make_stage(name, self.student, self.teacher, self.settings, self.processes, inputs)
            try:
                self.train(name, stage, stop, state)
            finally:
                stage.close()
            self.student.load_state_dict(self.best)
            gained = {"stage": name, "steps": at.step, "seconds": round(self.seconds - at.stage_started, 1)}
            at.stages.append(gained | {"before": at.stage_before, "after": at.figure})
            self.log.write("stage", **at.stages[-1])
            self.say(
                f"{stage.title}: {at.step} steps, {self.scale.label} on {self.scale.what} "
                f"{self.scale.change(at.stage_before, at.figure)}"
            )
        at.stage, at.step, at.planned, at.ended = at.stage + 1, 0, None, False
        at.scores, at.stage_before, at.stage_started = [], at.figure, self.seconds
        at.rate, at.rate_evaluations = 1.0, 0
        at.loss = at.running_figure = None

    def train(self, name: str, stage: Objective, stop: StopRequest, state: State | None) -> None:
        """The steps of a stage."""
        at = self.at
        settings = self.settings
        optimizer = make_optimizer(settings.optimizer, stage.parameters, settings.learning_rate)
        scaler = self.processes.scaler
        if state is not None:
            _restore(optimizer, state)
            if scaler is not None and state.scaler:
                scaler.load_state_dict(state.scaler)
        if at.planned is not None and at.step < at.planned:
            self.say(f"distilling {stage.title} for {at.planned} steps")
        durations: list[float] = []
        with (
            closing(feed(self.batches, self.settings, self.processes, at.taken)) as following,
            manual_progress(what=stage.title, unit="step", total=at.planned or 0) as bar,
        ):
            bar.initial = bar.n = at.step
            while at.planned is None or (at.step < at.planned and not at.ended and not at.stopped):
                began = time.monotonic()
                try:
                    stopping = self.step(name, stage, optimizer, following, stop)
                except Csa2GlmhaError:  # of the data: weights and position are still those of the last step
                    self.save(optimizer)
                    raise
                durations.append(time.monotonic() - began)
                if (
                    at.planned is not None
                    and (at.step == at.planned or at.step % schedule.evaluation_interval(at.planned) == 0)
                    and self.evaluate(name)
                ):
                    # The gradients of ruined weights are large: their moments would all but stop it.
                    optimizer.state.clear()
                if at.planned is None and len(durations) == TIMED_STEPS:
                    at.planned = self.plan(name, stage, median(durations[1:]))
                    bar.total = at.planned
                self.show(bar, name, optimizer, durations)
                if stopping:
                    self.save(optimizer)
                    raise KeyboardInterrupt
                if self.states is not None and time.monotonic() - self.saved >= self.states.minutes * 60:
                    self.save(optimizer)

    def plan(self, name: str, stage: Objective, step_seconds: float) -> int:
        """How many steps the stage takes in all, when its share of the minutes is to be used up."""
        at, settings = self.at, self.settings
        share = settings.layer_share if name == LAYERS and END in self.names else 1.0
        left = settings.minutes * 60 * share - self.seconds
        steps = schedule.steps_within(left, step_seconds, at.evaluation_seconds) if left > 0 else 0
        planned: int = self.processes.same(at.step + steps)
        self.say(f"distilling {stage.title} for {planned} steps, about {_duration(max(left, 0))}")
        if planned == at.step:
            self.evaluate(name)
        return planned

    # --- a step

    def step(
        self,
        name: str,
        stage: Objective,
        optimizer: Optimizer,
        following: Iterator[list[Batch]],
        stop: StopRequest,
    ) -> bool:
        """One optimizer step, or none if it is not finite; returns whether a process was told to stop."""
        at, scaler = self.at, self.processes.scaler
        factor = TIMED_RATE
        if at.planned is not None:
            factor = schedule.learning_rate(at.step, at.planned, self.settings.warmup)
        for group in optimizer.param_groups:
            group["lr"] = self.settings.peak(name) * at.rate * factor
        optimizer.zero_grad(set_to_none=True)
        loss, error = self.gradients(stage, next(following))
        figures = torch.stack([loss, torch.zeros_like(loss) if error is None else error]).float()
        figures = torch.cat([figures, figures.new_tensor([float(stop.made)])])
        # From here on all processes have the same numbers, and decide alike.
        average = self.processes.average(stage.parameters, figures)
        mean_loss, mean_error, stopping = average.tolist()
        if scaler is not None:
            scaler.unscale_(optimizer)
        norm = float(nn.utils.clip_grad_norm_(stage.parameters, 1.0))
        at.step += 1
        at.taken += 1
        if math.isfinite(mean_loss) and math.isfinite(norm):
            at.skipped_in_a_row = 0
            optimizer.step() if scaler is None else scaler.step(optimizer)
            at.loss = _running(at.loss, mean_loss)
            if error is not None:
                at.running_figure = _running(at.running_figure, figure_of(self.outputs, mean_error))
        else:
            self.skip()
        if scaler is not None:
            scaler.update()
        return bool(stopping > 0)

    def gradients(self, stage: Objective, parts: list[Batch]) -> tuple[Tensor, Tensor | None]:
        """Add up the gradients of a step's parts; returns their mean loss and error."""
        scaler = self.processes.scaler

        def backward(loss: Tensor) -> None:
            loss = loss / len(parts)
            (loss if scaler is None else scaler.scale(loss)).backward()

        seen = [stage.accumulate(part, backward) for part in parts]
        known = [error for _, error in seen if error is not None]
        loss = torch.stack([loss for loss, _ in seen]).mean()
        return loss, torch.stack(known).mean() if known else None

    def skip(self) -> None:
        """Count a step that was not taken, and stop if there are too many of them."""
        at = self.at
        at.skipped += 1
        at.skipped_in_a_row += 1
        self.log.write("skipped", step=at.taken)
        if at.skipped_in_a_row == 1:
            self.say(f"step {at.taken}: loss or gradient is not finite, the step is skipped")
        if at.skipped_in_a_row == MAX_SKIPPED:
            at.stopped = (
                f"stopped at step {at.taken}: loss or gradient was not finite {MAX_SKIPPED} times in a row; "
                "the best weights before that are kept. Lower --learning-rate, give --precision fp32, or "
                "look for invalid images"
            )
            self.say(at.stopped)

    # --- looking

    def look(self) -> tuple[float, float]:
        """Agreement with the teacher on its scale, and the score that decides what is kept, as of now."""
        began = time.monotonic()
        processes, weight, figures = self.processes, self.settings.truth_weight, self.outputs.figures
        to_teacher, to_ground_truth = errors(self.student, self.held_out, processes.index, processes.count)
        both = (to_teacher + weight * to_ground_truth) / (1 + weight)
        sums = [figures(to_teacher).sum(), figures(both).sum(), to_teacher.new_tensor(len(to_teacher))]
        figure, score, images = processes.total(torch.stack(sums)).tolist()
        self.at.evaluation_seconds = time.monotonic() - began
        return figure / images, self.outputs.score(score / images)

    def evaluate(self, name: str) -> bool:
        """Look at the student, keep its weights if they are the best, and end the stage if that is all.

        Returns:
            Whether it went back to the best weights and a smaller rate.
        """
        at, settings = self.at, self.settings
        figure, score = self.look()
        going_on = at.planned is not None and at.step < at.planned
        if not math.isfinite(score):
            return going_on and self.back_off()
        metric = self.scale.metric
        entry: dict[str, Any] = {"stage": name, "step": at.taken, metric: figure, "minutes": self.minutes()}
        entry |= {} if at.loss is None else {"loss": at.loss}
        at.curve.append(entry)
        at.scores.append(score)
        self.log.write("evaluation", **entry)
        self.log.plot(at.taken, **{f"held_out_{metric}": figure})
        if score > at.score:
            at.score, at.figure, at.best_step = score, figure, at.taken
            self.best = _copy(self.student)
        if going_on:
            assert at.planned is not None
            scores = [at.scores[0], *at.scores[1 + at.rate_evaluations :]]
            at.ended = schedule.gains_nothing_more(scores, at.step, at.planned, settings.warmup)
            if at.ended:
                self.say(f"nothing more is gained after {at.step} of {at.planned} steps: the stage ends")
            elif schedule.falls(scores):
                return self.back_off()
        return False

    def back_off(self) -> bool:
        """Go back to the best weights, and on in smaller steps, or not at all after too many times."""
        at = self.at
        if at.rate <= schedule.BACK_OFF**schedule.MAX_BACK_OFFS:
            at.ended = True
            self.say(f"step {at.taken}: the agreement with the teacher keeps falling: the stage ends")
            return False
        at.rate *= schedule.BACK_OFF
        at.rate_evaluations = len(at.scores) - 1
        self.student.load_state_dict(self.best)
        self.log.write("back_off", step=at.taken, rate=at.rate)
        self.say(
            f"step {at.taken}: the agreement with the teacher falls; back to the best weights, and on at "
            f"{at.rate:g} of the learning rate"
        )
        return True

    def show(self, bar: tqdm[Any], name: str, optimizer: Optimizer, durations: list[float]) -> None:
        """The progress bar, the log and the plots of a step."""
        at, settings = self.at, self.settings
        images = settings.batch * settings.accumulate * self.processes.count
        rate = images / max(median(durations[-20:]), 1e-6) if durations else 0.0
        metric, running = self.scale.metric, at.running_figure
        figure = self.scale.show(at.curve[-1][metric] if running is None else running)
        loss = math.nan if at.loss is None else at.loss
        bar.set_postfix_str(f"loss {loss:.2e}, {figure}, {rate:.1f} images/s", refresh=False)
        bar.update()
        if at.taken % STEPS_PER_ENTRY == 0 and at.loss is not None:
            values = {
                "loss": at.loss,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "images_per_second": round(rate, 2),
            }
            values |= {} if running is None else {metric: running}
            self.log.write("step", stage=name, step=at.taken, **values)
            self.log.plot(at.taken, **{f"{name}/{key}": value for key, value in values.items()})

    def minutes(self) -> float:
        """Spent so far, for people."""
        return round(self.seconds / 60, 2)

    # --- states

    def save(self, optimizer: Optimizer | None) -> None:
        """Save a state if states are kept; if that fails, say so and go on."""
        self.saved = time.monotonic()
        if self.states is None:
            return
        self.at.seconds = self.seconds
        scaler = self.processes.scaler
        values = {} if optimizer is None else optimizer.state_dict()["state"]
        state = State(
            self.at,
            self.student.state_dict(),
            self.best,
            values,
            {} if scaler is None else scaler.state_dict(),
        )
        try:
            self.states.save(state)
            self.log.write("state", step=self.at.taken)
        except OutputError as error:
            self.say(f"{error}; training goes on, earlier states are as they were")
        self.saved = time.monotonic()


def _restore(optimizer: Optimizer, state: State) -> None:
    # Fresh tensors, aligned as those of a run that was not stopped: the last bit can depend on it.
    values = {
        number: {name: value.clone() for name, value in tensors.items()}
        for number, tensors in state.optimizer.items()
    }
    optimizer.load_state_dict({"state": values, "param_groups": optimizer.state_dict()["param_groups"]})


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _running(mean: float | None, value: float) -> float:
    return value if mean is None else (1 - RUNNING) * mean + RUNNING * value


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} seconds" if seconds < 90 else f"{seconds / 60:.0f} minutes"
