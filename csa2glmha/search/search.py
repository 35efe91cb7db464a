"""Choosing the ranks of every layer under a budget: measure, allocate, check."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from csa2glmha.attention.glmha import GLMHAConfig
from csa2glmha.attention.layers import attention_layers
from csa2glmha.attention.ranks import Ranks, layer_config
from csa2glmha.distill.held_out import HeldOut, decibels, errors
from csa2glmha.errors import UsageError
from csa2glmha.models import RestorationModel
from csa2glmha.report.complexity import format_macs, format_params
from csa2glmha.search.allocate import Allocation, InfeasibleError, allocate
from csa2glmha.search.budget import LATENCY, MACS, MAX_DROP, PARAMS, Budget
from csa2glmha.search.choices import LOGITS, SIDES, VALUES, Choice, combined
from csa2glmha.search.costs import Costs, Key, count_configs
from csa2glmha.search.sensitivity import Measured, agreement_of_prediction

#: How often a budget that can only be checked on the result is tightened before what was reached is taken.
CORRECTIONS = 6
#: A result this close to what was asked for, on the right side, is taken as it is.
CLOSE = 0.98

Builder = Callable[[dict[str, GLMHAConfig]], RestorationModel]


@dataclass(frozen=True)
class SearchSpace:
    """The choices of every layer and side, with what they cost and lose.

    Attributes:
        choices: the first of each is full rank.
        costs: counted.
        measured: what each loses, in mean squared error to the teacher.
        frame: height and width that MACs are counted at.
    """

    choices: dict[Key, list[Choice]]
    costs: Costs
    measured: dict[Key, list[Measured]]
    frame: tuple[int, int]

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


def check_reachable(costs: Costs, budget: Budget) -> None:
    """Before anything is measured.

    Raises:
        UsageError: the budget cannot be met, and what can.
    """
    if budget.kind not in (MACS, PARAMS):
        return
    index = 0 if budget.kind == MACS else 1
    least = costs.lossless[index] - sum(max(each[index] for each in saved) for saved in costs.saved.values())
    limit = budget.limit(costs.teacher[index])
    if least > limit:
        raise _unreachable(budget, least, costs.teacher[index])


def _unreachable(budget: Budget, least: float, teacher: float) -> UsageError:
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

    Raises:
        UsageError: the budget cannot be met.
    """
    index = 0 if budget.kind == MACS else 1
    limit = budget.limit(space.costs.teacher[index])
    amounts, room = space.amounts(budget.kind), limit - space.costs.lossless[index]
    for _ in range(CORRECTIONS):
        try:
            found = allocate(space.losses(), amounts, room)
        except InfeasibleError as error:
            least = error.least + space.costs.lossless[index]
            raise _unreachable(budget, least, space.costs.teacher[index]) from None
        counted = count_configs(teacher, _configs(teacher, space, found), space.frame)
        excess = (counted.macs if budget.kind == MACS else counted.params) - limit
        if excess <= 0:
            break
        room -= excess  # the two sides of a layer share a little that was counted once for each
    return _result(space, budget, found, {})


def search_drop(
    teacher: RestorationModel, space: SearchSpace, budget: Budget, held_out: HeldOut, build: Builder
) -> FoundRanks:
    """The ranks that cost least and lose at most so many decibels of PSNR to the truth, before distillation.

    Errors to the teacher foretell the loss to the truth roughly, so students are built and judged until one
    keeps to the budget and comes close to it.

    Args:
        teacher, space, budget: of MAX_DROP.
        held_out: images with their truth.
        build: makes the student of a configuration.

    Raises:
        UsageError: there is no truth to judge by.
    """
    if held_out.truth is None:
        raise UsageError(
            f"{budget}: needs the ground truth of the images; give --targets, or clean images and --degrade"
        )
    own = np.array(
        [float((o - t).square().mean()) for o, t in zip(held_out.teacher, held_out.truth, strict=True)]
    )
    room = float(own.mean() * (10 ** (budget.target / 10) - 1))
    best: tuple[Allocation, float] | None = None
    tried: list[dict[str, float]] = []
    low, high = 0.0, float("inf")
    for _ in range(CORRECTIONS):
        found = allocate(space.amounts(MACS), space.losses(), room)
        student = build(_configs(teacher, space, found))
        drop = _drop(student, held_out)
        tried.append({"error": found.cost, "drop": drop})
        if drop <= budget.target:
            low = max(low, room)
            if best is None or found.loss < best[0].loss:
                best = (found, drop)
            if drop >= CLOSE * budget.target or found.cost == 0:
                break
        else:
            high = min(high, room)
        # Towards the target in proportion, and between what is known to be too little and too much.
        aim = room * max(0.25, min(4.0, budget.target / max(drop, 1e-6)))
        room = aim if low < aim < high else (low + min(high, 4 * max(low, 1e-12))) / 2
    if best is None:
        nothing = [0] * len(space.choices)
        best = (Allocation(nothing, 0.0, 0.0, 0.0), 0.0)
    return _result(space, budget, _as_errors(space, best[0]), {"drop": best[1], "tried": tried})


def search_latency(
    space: SearchSpace, budget: Budget, times: Mapping[Key, Sequence[float]], lossless: float, teacher: float
) -> FoundRanks:
    """The ranks that lose least within so much time, by a model of it.

    Args:
        space, budget: of LATENCY.
        times: what each choice saves, in milliseconds.
        lossless, teacher: of the whole networks.

    Raises:
        UsageError: the budget cannot be met.
    """
    limit = budget.limit(teacher)
    try:
        found = allocate(
            space.losses(), [[-saved for saved in times[key]] for key in space.choices], limit - lossless
        )
    except InfeasibleError as error:
        raise _unreachable(budget, error.least + lossless, teacher) from None
    return _result(space, budget, found, {"milliseconds": found.cost + lossless})


def _drop(student: RestorationModel, held_out: HeldOut) -> float:
    """Mean loss of PSNR to the truth, in decibels."""
    assert held_out.truth is not None
    _, after = errors(student, held_out)
    own = [(o - t).square().mean().double() for o, t in zip(held_out.teacher, held_out.truth, strict=True)]
    before = decibels(after.new_tensor([float(each) for each in own]))
    return float((before - decibels(after)).mean())


def _picked(space: SearchSpace, found: Allocation) -> dict[Key, Choice]:
    return {key: space.choices[key][pick] for key, pick in zip(space.choices, found.picks, strict=True)}


def _ranks(space: SearchSpace, found: Allocation) -> dict[str, Ranks]:
    picked = _picked(space, found)
    names = dict.fromkeys(name for name, _ in space.choices)
    return {name: combined(picked[name, LOGITS], picked[name, VALUES]) for name in names}


def _configs(teacher: RestorationModel, space: SearchSpace, found: Allocation) -> dict[str, GLMHAConfig]:
    layers = attention_layers(teacher)
    return {name: layer_config(layers[name].form, ranks) for name, ranks in _ranks(space, found).items()}


def _as_errors(space: SearchSpace, found: Allocation) -> Allocation:
    """The same picks with what they lose as the loss; the bound, on the cost, goes with it in proportion."""
    lost = sum(each[pick] for each, pick in zip(space.losses(), found.picks, strict=True))
    return Allocation(found.picks, lost, found.loss, found.bound)


def _result(space: SearchSpace, budget: Budget, found: Allocation, reached: dict[str, Any]) -> FoundRanks:
    picked = _picked(space, found)
    saved = np.array(
        [space.costs.saved[key][pick] for key, pick in zip(space.choices, found.picks, strict=True)]
    ).sum(0)
    macs, params = (int(whole - part) for whole, part in zip(space.costs.lossless, saved, strict=True))
    optimality = (
        "cheapest for errors that add up, of those that were found to keep to the drop"
        if budget.kind == MAX_DROP
        else f"within {100 * found.gap:.1f} % of the least predicted error that any choice of these ranks has"
    )
    report = {
        "budget": {"kind": budget.kind, "target": budget.target, "absolute": budget.absolute},
        "reached": {"macs": macs, "params": params, **reached},
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
    extra = "".join(
        f", {text.format(reached[name])}"
        for name, text in (("drop", "{:.3f} dB below the teacher"), ("milliseconds", "about {:.0f} ms"))
        if name in reached
    )
    psnr = predicted["psnr_to_teacher"]
    return (
        f"ranks found: {format_macs(reached['macs'])}, {format_params(reached['params'])}{extra}; predicted "
        f"PSNR to the teacher {psnr:.2f} dB before distillation; {report['optimality']}"
    )


def decibels_of(error: float) -> float:
    """PSNR of a mean squared error, data range 1."""
    return float(-10 * np.log10(max(error, 1e-20)))
