"""Choosing the ranks of every layer under a budget that can be counted: allocate, count, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csa2glmha.attention.glmha import GLMHAConfig
from csa2glmha.attention.layers import attention_layers
from csa2glmha.attention.ranks import Ranks, layer_config
from csa2glmha.errors import UsageError
from csa2glmha.models import RestorationModel
from csa2glmha.report.complexity import Complexity, format_macs, format_params
from csa2glmha.search.allocate import Allocation, allocate
from csa2glmha.search.budget import LATENCY, MACS, MAX_DROP, PARAMS, Budget
from csa2glmha.search.choices import LOGITS, SIDES, VALUES, Choice, combined
from csa2glmha.search.costs import Costs, Finish, Key, count_configs, unchanged
from csa2glmha.search.sensitivity import Measured, agreement_of_prediction

#: How often a budget that can only be checked on the result is tightened before what was reached is taken.
CORRECTIONS = 6

Configs = dict[str, GLMHAConfig]


@dataclass(frozen=True)
class SearchSpace:
    """The choices of every layer and side, with what they cost and lose.

    Attributes:
        choices: the first of each is full rank.
        costs: counted.
        measured: what each loses, in mean squared error to the teacher.
        frame: height and width that MACs are counted at.
        finish: what is done to a student before it is counted.
    """

    choices: dict[Key, list[Choice]]
    costs: Costs
    measured: dict[Key, list[Measured]]
    frame: tuple[int, int]
    finish: Finish = unchanged

    def losses(self) -> list[list[float]]:
        """In the order of ``choices``."""
        return [[each.error for each in self.measured[key]] for key in self.choices]

    def amounts(self, kind: str) -> list[list[float]]:
        """What each choice adds to the lossless student's MACs or parameters: nothing, or less than that."""
        index = 0 if kind == MACS else 1
        return [[-float(saved[index]) for saved in self.costs.saved[key]] for key in self.choices]


@dataclass(frozen=True)
class FoundRanks:
    """What a search found.

    Attributes:
        ranks: of every layer.
        report: what was asked, reached, predicted and measured, as JSON values.
    """

    ranks: dict[str, Ranks]
    report: dict[str, Any]


def check_reachable(
    teacher: RestorationModel,
    choices: Mapping[Key, Sequence[Choice]],
    costs: Costs,
    budget: Budget,
    frame: tuple[int, int],
    finish: Finish = unchanged,
) -> None:
    """Before anything is measured.

    Raises:
        UsageError: the budget cannot be met, and what can.
    """
    if budget.kind not in (MACS, PARAMS):
        return
    index = 0 if budget.kind == MACS else 1
    limit = budget.limit(costs.teacher[index])
    if costs.lossless[index] - sum(max(e[index] for e in saved) for saved in costs.saved.values()) <= limit:
        return
    # The two sides of a layer share a little that each of them would save: only a count tells.
    picks = [max(range(len(saved)), key=lambda i: saved[i][index]) for saved in costs.saved.values()]
    configs = _configs_of_ranks(teacher, _picks_to_ranks(choices, picks))
    least = _amount(count_configs(teacher, configs, frame, finish), budget.kind)
    if least > limit:
        raise unreachable(budget, least, costs.teacher[index])


def unreachable(budget: Budget, least: float, teacher: float) -> UsageError:
    """What to say where the least there is, and the teacher's amount, are these."""
    if budget.kind == LATENCY:
        amounts = f"{least:.1f} ms of {teacher:.1f} ms"
    else:
        show = format_macs if budget.kind == MACS else format_params
        amounts = f"{show(int(least))} of {show(int(teacher))}"
    # Rounded up: what is named here must be accepted when it is given.
    share = np.ceil(1000 * least / teacher) / 1000
    return UsageError(
        f"{budget}: cannot be reached with the attention layers alone; the smallest is {share:g} of the "
        f"teacher's ({amounts})"
    )


def search_amount(teacher: RestorationModel, space: SearchSpace, budget: Budget) -> FoundRanks:
    """The ranks that lose least within so many multiply-accumulates or parameters.

    What sides of layers cost nearly adds up; students are counted whole, and the room for the sum is narrowed
    or widened by what they exceed or leave.

    Raises:
        UsageError: the budget cannot be met.
    """
    index = 0 if budget.kind == MACS else 1
    limit = budget.limit(space.costs.teacher[index])
    amounts = space.amounts(budget.kind)
    least = sum(map(min, amounts))
    room = max(limit - space.costs.lossless[index], least)
    best: tuple[Allocation, Complexity] | None = None
    tried: set[tuple[int, ...]] = set()
    for _ in range(CORRECTIONS):
        found = allocate(space.losses(), amounts, room)
        if tuple(found.picks) in tried:
            break
        tried.add(tuple(found.picks))
        counted = count_configs(teacher, configs_of(teacher, space, found), space.frame, space.finish)
        spare = limit - _amount(counted, budget.kind)
        if spare >= 0 and (best is None or found.loss < best[0].loss):
            best = found, counted
        if spare < 0 and room <= least:
            break
        room = max(room + spare, least)
    if best is None:
        raise unreachable(budget, _amount(counted, budget.kind), space.costs.teacher[index])
    return found_ranks(space, budget, best[0], best[1], {})


def _picked(choices: Mapping[Key, Sequence[Choice]], picks: Sequence[int]) -> dict[Key, Choice]:
    return {key: each[pick] for (key, each), pick in zip(choices.items(), picks, strict=True)}


def _picks_to_ranks(choices: Mapping[Key, Sequence[Choice]], picks: Sequence[int]) -> dict[str, Ranks]:
    picked = _picked(choices, picks)
    names = dict.fromkeys(name for name, _ in choices)
    return {name: combined(picked[name, LOGITS], picked[name, VALUES]) for name in names}


def _ranks(space: SearchSpace, found: Allocation) -> dict[str, Ranks]:
    return _picks_to_ranks(space.choices, found.picks)


def configs_of(teacher: RestorationModel, space: SearchSpace, found: Allocation) -> Configs:
    """The layers of a student with the choices of an allocation."""
    return _configs_of_ranks(teacher, _ranks(space, found))


def _configs_of_ranks(teacher: RestorationModel, ranks: Mapping[str, Ranks]) -> Configs:
    layers = attention_layers(teacher)
    return {name: layer_config(layers[name].form, each) for name, each in ranks.items()}


def _amount(counted: Complexity, kind: str) -> int:
    return counted.macs if kind == MACS else counted.params


def found_ranks(
    space: SearchSpace, budget: Budget, found: Allocation, counted: Complexity, reached: dict[str, Any]
) -> FoundRanks:
    """What a search reports.

    Args:
        space, budget: of the search.
        found: the choices; the loss is that in agreement with the teacher.
        counted: the student.
        reached: what else is known of it.
    """
    picked = _picked(space.choices, found.picks)
    optimality = (
        "cheapest for errors that add up, of those that were found to keep to the drop"
        if budget.kind == MAX_DROP
        else f"within {100 * found.gap:.1f} % of the least error that these ranks allow, as errors add up"
    )
    report = {
        "budget": {"kind": budget.kind, "target": budget.target, "absolute": budget.absolute},
        "reached": {"macs": counted.macs, "params": counted.params, **reached},
        "predicted": {
            "error": found.loss,
            "psnr_to_teacher": float(decibels_of(found.loss)),
            "uniform": uniform_curve(space),
        },
        "gap": None if budget.kind == MAX_DROP else found.gap,
        "optimality": optimality,
        "agreement": agreement_of_prediction(space.measured),
        "choices": [
            {
                "layer": name,
                "side": side,
                "ranks": choice.label,
                "error": measured.error,
                "predicted": measured.predicted,
                "macs_saved": saved_macs,
                "params_saved": saved_params,
                "picked": choice == picked[name, side],
            }
            for (name, side), each in space.choices.items()
            for choice, measured, (saved_macs, saved_params) in zip(
                each, space.measured[name, side], space.costs.saved[name, side], strict=True
            )
        ],
    }
    return FoundRanks(_ranks(space, found), report)


def uniform_curve(space: SearchSpace) -> list[dict[str, float]]:
    """What one rank for keys and values of all layers is predicted to lose, rank by rank."""
    ranks = sorted(
        {
            choice.ranks.v
            for (_, side), each in space.choices.items()
            for choice in each
            if side == VALUES and choice.ranks.v is not None
        }
    )
    curve = []
    for rank in ranks:
        error, saved = 0.0, np.zeros(2)
        for name in dict.fromkeys(name for name, _ in space.choices):
            for side in SIDES:
                index = _at_least(space.choices[name, side], rank, side)
                error += space.measured[name, side][index].error
                saved += space.costs.saved[name, side][index]
        curve.append(
            {
                "rank": rank,
                "macs": space.costs.lossless[0] - saved[0],
                "params": space.costs.lossless[1] - saved[1],
                "error": error,
                "psnr_to_teacher": float(decibels_of(error)),
            }
        )
    return curve


def _at_least(choices: Sequence[Choice], rank: int, side: str) -> int:
    """The choice of the least rank that is not below this one."""
    best, least = 0, float("inf")
    for index, choice in enumerate(choices):
        own = choice.ranks.v if side == VALUES else choice.ranks.k
        if choice.ranks.q is None and own is not None and rank <= own < least:
            best, least = index, own
    return best


def describe_found(report: dict[str, Any]) -> str:
    """A search's result in a sentence or two."""
    reached, predicted = report["reached"], report["predicted"]
    texts = {"drop": "{:.3f} dB below the teacher", "time_share": "{:.3f} of the teacher's time"}
    extra = "".join(f", {text.format(reached[name])}" for name, text in texts.items() if name in reached)
    psnr = predicted["psnr_to_teacher"]
    return (
        f"ranks found: {format_macs(reached['macs'])}, {format_params(reached['params'])}{extra}; predicted "
        f"PSNR to the teacher {psnr:.2f} dB before distillation; {report['optimality']}"
    )


def decibels_of(error: float) -> float:
    """PSNR of a mean squared error, data range 1."""
    return float(-10 * np.log10(max(error, 1e-20)))
