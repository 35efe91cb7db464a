"""What other methods reach with the same multiply-accumulates and the same distillation."""

from __future__ import annotations

import bisect
import copy
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from csa2glmha.config.options import WorkOptions
from csa2glmha.core.progress import say
from csa2glmha.data.batches import Data, Example, Inputs
from csa2glmha.distill import StateFolder
from csa2glmha.distill.job import DistillJob, find_state
from csa2glmha.initialize.baselines import (
    COMPACT,
    DESCRIPTIONS,
    STATIC,
    SVD,
    baseline_configs,
    initialise_baseline,
    supported,
)
from csa2glmha.metrics.complexity import count_complexity
from csa2glmha.metrics.evaluate import Restore, evaluate, restore
from csa2glmha.metrics.logits import KL, TOP1
from csa2glmha.networks import RestorationModel
from csa2glmha.reading.layers import attention_layers
from csa2glmha.search.costs import Finish, count_configs

#: The methods, in the order of the report.
KINDS = (SVD, STATIC, COMPACT)
#: Ranks that are tried for the same multiply-accumulates.
RANKS = (2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48)


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
    """

    teacher: RestorationModel
    options: WorkOptions
    data: Data
    examples: list[Example]
    batches: Sequence[Inputs]
    identity: Mapping[str, Any]
    output: Path
    finish: Finish[RestorationModel]

    @property
    def state_folders(self) -> dict[str, Path]:
        """Where the states of each method's distillation are."""
        return {kind: self.output / f"state-{kind}" for kind in KINDS}

    def clear(self) -> None:
        """Delete the states. They are kept until the report is written: a run that is killed before that goes
        on without training again."""
        for folder in self.state_folders.values():
            StateFolder(folder, {}).clear()

    def run(self, macs: int) -> list[dict[str, Any]]:
        """Make, distil and evaluate every method that the teacher's layers allow.

        Args:
            macs: of the student, which the methods are to come close to.
        """
        found = []
        layers = attention_layers(self.teacher)
        for kind in KINDS:
            if supported(layers, kind):
                found.append(self._one(kind, macs))
            else:
                say(f"baseline {kind}: these layers have no such form, left out")
        return found

    def _one(self, kind: str, macs: int) -> dict[str, Any]:
        rank = self._rank(kind, macs)
        say(f"baseline {kind}: {DESCRIPTIONS[kind]}, rank {rank}")
        student, _ = initialise_baseline(self.teacher, kind, rank, self.batches)
        candidates: dict[str, Restore] = {"teacher": restore(self.teacher)}
        candidates["before"] = restore(self.finish(copy.deepcopy(student)))
        distilled = self.options.distill and self.options.distill_steps != 0
        if distilled:
            folder = self.state_folders[kind]
            identity = {**self.identity, "the method": kind, "its rank": rank}
            states = StateFolder(folder, identity, self.options.state_minutes, say)
            state = find_state(states, self.options)
            if state is None:
                states.clear()
            log = self.output / f"distill-{kind}.jsonl"
            DistillJob(self.options, self.data, states, log).run(student, self.teacher, state)
        student = self.finish(student).eval()
        candidates["after"] = restore(student)
        evaluated = evaluate(candidates, self.examples, "teacher", self.data.outputs)
        shapes = student.input_shapes(*self.data.frame(self.options.input_size))
        counted = count_complexity(student, *shapes)

        def quality(name: str) -> dict[str, Any]:
            own, found = evaluated["teacher"].to_json(), evaluated[name].to_json()
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

        return {
            "name": kind,
            "description": f"{DESCRIPTIONS[kind]}; rank {rank}",
            "rank": rank,
            "macs": counted.macs,
            "params": counted.params,
            "before": quality("before"),
            "after": quality("after") if distilled else None,
        }

    def _rank(self, kind: str, macs: int) -> int:
        """The rank whose multiply-accumulates come closest; they grow with it."""
        layers = attention_layers(self.teacher)
        widest = max(layer.form.head_channels for layer in layers.values())
        frame = self.data.frame(self.options.input_size)

        def shapes(model: RestorationModel) -> tuple[tuple[int, ...], ...]:
            return model.input_shapes(*frame)

        @functools.cache
        def macs_of(rank: int) -> int:
            configs = baseline_configs(layers, kind, rank)
            return count_configs(self.teacher, configs, shapes, self.finish).macs

        ranks = [rank for rank in RANKS if rank < widest]
        above = bisect.bisect_left(ranks, macs, key=macs_of)
        nearest = ranks[max(above - 1, 0) : above + 1]
        return min(nearest, key=lambda rank: abs(macs_of(rank) - macs), default=widest)
