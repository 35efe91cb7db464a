"""What other methods reach with the same multiply-accumulates and the same distillation."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csa2glmha.config.options import WorkOptions
from csa2glmha.core.progress import say
from csa2glmha.data.batches import Data, Example, Inputs
from csa2glmha.distill import StateFolder
from csa2glmha.distill.job import DistillJob, find_state
from csa2glmha.metrics.complexity import Complexity, count_complexity
from csa2glmha.metrics.evaluate import Restore, evaluate, restore
from csa2glmha.metrics.logits import KL, TOP1
from csa2glmha.networks import RestorationModel
from csa2glmha.search.costs import Finish
from csa2glmha.search.methods import Method, Setting, methods


@dataclass(frozen=True)
class BaselineJob:
    """The comparison of one conversion.

    Attributes:
        teacher: on its device.
        options, data: of the conversion; the steps of distillation are those that the student took.
        examples: to evaluate on.
        batches: calibration inputs.
        identity: what a state to resume from must share, beside the method.
        output: folder of the results.
        finish: what is done to a student before it is evaluated.
        widths: hidden channels of the student's feed-forward networks that lost some.
        skipped: layers that it goes without.
    """

    teacher: RestorationModel
    options: WorkOptions
    data: Data
    examples: list[Example]
    batches: Sequence[Inputs]
    identity: Mapping[str, Any]
    output: Path
    finish: Finish[RestorationModel]
    widths: Mapping[str, int]
    skipped: Sequence[str]

    @property
    def methods(self) -> list[Method]:
        """The methods to compare with, in the order of the report."""
        return methods(self.teacher, self.widths, self.skipped, self._counted)

    def clear(self) -> None:
        """Delete the states. They are kept until the report is written: a run that is killed before that goes
        on without training again."""
        for method in self.methods:
            StateFolder(self._states_of(method), {}).clear()

    def run(self, macs: int) -> list[dict[str, Any]]:
        """Make, distil and evaluate every method that the teacher's layers allow.

        Args:
            macs: of the student, which the methods are to come close to.
        """
        found = []
        for method in self.methods:
            if not method.possible:
                say(f"baseline {method.name}: these layers have no such form, left out")
                continue
            setting = method.setting(macs)
            say(f"baseline {method.name}: {method.description}; {setting.words}")
            found.append(_entry(method, setting) | self._measured(method, setting))
        return found

    def _states_of(self, method: Method) -> Path:
        return self.output / f"state-{method.name}"

    def _counted(self, student: RestorationModel) -> Complexity:
        student = self.finish(student)
        return count_complexity(student, *student.input_shapes(*self.data.frame(self.options.input_size)))

    def _measured(self, method: Method, setting: Setting) -> dict[str, Any]:
        """What a method's student needs, and how good it is; nothing is made where it is out of reach."""
        if setting.least is not None:
            return _needs(setting.least) | {"before": None, "after": None}
        student = method.student(setting, self.batches)
        candidates: dict[str, Restore] = {"teacher": restore(self.teacher)}
        candidates["before"] = restore(self.finish(copy.deepcopy(student)))
        distilled = self.options.distill and self.options.distill_steps != 0
        if distilled:
            self._distil(method, setting, student)
        counted = self._counted(student)
        candidates["after"] = restore(self.finish(student).eval())
        evaluated = evaluate(candidates, self.examples, "teacher", self.data.outputs)
        own = evaluated["teacher"].to_json()
        before, after = (_quality(own, evaluated[name].to_json()) for name in ("before", "after"))
        return _needs(counted) | {"before": before, "after": after if distilled else None}

    def _distil(self, method: Method, setting: Setting, student: RestorationModel) -> None:
        identity = {**self.identity, "the method": method.name, "its rank": setting.rank}
        if setting.widths:
            identity["its widths"] = dict(setting.widths)
        if self.skipped:
            identity["the layers it goes without"] = list(self.skipped)
        states = StateFolder(self._states_of(method), identity, self.options.state_minutes, say)
        state = find_state(states, self.options)
        if state is None:
            states.clear()
        log = self.output / f"distill-{method.name}.jsonl"
        DistillJob(self.options, self.data, states, log).run(student, self.teacher, state)


def _entry(method: Method, setting: Setting) -> dict[str, Any]:
    entry = {"name": method.name, "description": f"{method.description}; {setting.words}"}
    return entry | {"rank": setting.rank, "ffn": setting.share}


def _needs(counted: Complexity) -> dict[str, int]:
    return {"macs": counted.macs, "params": counted.params}


def _quality(own: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """How close a network is to the teacher, and how much worse than it; both as evaluations in JSON."""
    to_teacher = found.get("teacher", {})

    def change(metric: str) -> float | None:
        before, after = (each.get("ground_truth", {}).get(metric) for each in (own, found))
        known = isinstance(before, float) and isinstance(after, float)
        return after - before if known else None

    figures = {"psnr_to_teacher": to_teacher.get("psnr"), "psnr_drop": change("psnr")}
    if KL in to_teacher:
        figures |= {"kl_to_teacher": to_teacher[KL], "top1_to_teacher": to_teacher[TOP1]}
        figures["top1_change"] = change(TOP1)
    return figures
