"""Choosing the ranks of every layer under a budget that can be counted: allocate, count, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from csa2glmha.config.budget import LATENCY, MACS, PARAMS, Budget
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.errors import UsageError
from csa2glmha.initialize.configure import layer_config, worthwhile
from csa2glmha.metrics.complexity import Complexity, format_macs, format_params
from csa2glmha.reading.layers import attention_layers
from csa2glmha.report.schema_search import Search
from csa2glmha.search.allocate import Allocation, allocate
from csa2glmha.search.choices import LOGITS, VALUES, Choice, combined
from csa2glmha.search.costs import Costs, CountStudent, Key
from csa2glmha.search.report import search_report
from csa2glmha.search.space import Configs, SearchSpace

#: How often a budget that can only be checked on the result is tightened before what was reached is taken.
CORRECTIONS = 6


@dataclass(frozen=True)
class FoundRanks:
    """What a search found.

    Attributes:
        ranks: of every layer.
        report: what was asked, reached, predicted and measured.
    """

    ranks: dict[str, Ranks]
    report: Search


def check_reachable(
    teacher: nn.Module,
    choices: Mapping[Key, Sequence[Choice]],
    costs: Costs,
    budget: Budget,
    count: CountStudent,
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
    least = _amount(count(configs), budget.kind)
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


def search_amount(teacher: nn.Module, space: SearchSpace, budget: Budget) -> FoundRanks:
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
        counted = space.count(configs_of(teacher, space, found))
        spare = limit - _amount(counted, budget.kind)
        if spare >= 0 and (best is None or found.loss < best[0].loss):
            best = found, counted
        if spare < 0 and room <= least:
            break
        room = max(found.cost + spare, least)
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


def configs_of(teacher: nn.Module, space: SearchSpace, found: Allocation) -> Configs:
    """The layers of a student with the choices of an allocation."""
    return _configs_of_ranks(teacher, _ranks(space, found))


def _configs_of_ranks(teacher: nn.Module, ranks: Mapping[str, Ranks]) -> Configs:
    layers = attention_layers(teacher)
    return worthwhile(layers, {name: layer_config(layers[name].form, each) for name, each in ranks.items()})


def _amount(counted: Complexity, kind: str) -> int:
    return counted.macs if kind == MACS else counted.params


def found_ranks(
    space: SearchSpace, budget: Budget, found: Allocation, counted: Complexity, reached: Mapping[str, object]
) -> FoundRanks:
    """What was found, with its report; the arguments are those of :func:`search_report`."""
    return FoundRanks(_ranks(space, found), search_report(space, budget, found, counted, reached))
