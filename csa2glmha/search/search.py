"""Choosing ranks, widths and depth under a budget that can be counted: allocate, count, report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from csa2glmha.config.budget import LATENCY, MACS, PARAMS, Budget
from csa2glmha.core.errors import UsageError
from csa2glmha.metrics.complexity import Complexity, format_macs, format_params
from csa2glmha.reading.sizes import Sizes
from csa2glmha.report.schema_search import Search
from csa2glmha.search.allocate import Allocation
from csa2glmha.search.choices import Choice, Key, sizes_of
from csa2glmha.search.costs import ChoiceCosts, CountStudent
from csa2glmha.search.report import search_report
from csa2glmha.search.space import SearchSpace, least_picks, least_total

#: How often a budget that can only be checked on the result is tightened before what was reached is taken.
CORRECTIONS = 6


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        sizes: of the student.
        report: what was asked, reached, predicted and measured.
    """

    sizes: Sizes
    report: Search


def check_reachable(
    teacher: nn.Module,
    choices: Mapping[Key, list[Choice]],
    costs: ChoiceCosts,
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
    added = {key: [-float(saved[index]) for saved in costs.saved[key]] for key in choices}
    if costs.lossless[index] + least_total(added) <= limit:
        return
    # The two sides of a layer share a little that each of them would save: only a count tells.
    least = _amount(count(sizes_of(teacher, choices, least_picks(added))), budget.kind)
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
    return UsageError(f"{budget}: cannot be reached; the smallest is {share:g} of the teacher's ({amounts})")


def search_amount(teacher: nn.Module, space: SearchSpace, budget: Budget) -> SearchResult:
    """The sizes that lose least within so many multiply-accumulates or parameters.

    What sides of layers cost nearly adds up; students are counted whole, and the room for the sum is narrowed
    or widened by what they exceed or leave.

    Raises:
        UsageError: the budget cannot be met.
    """
    index = 0 if budget.kind == MACS else 1
    limit = budget.limit(space.costs.teacher[index])
    amounts = space.amounts(budget.kind)
    least = space.least(amounts)
    room = max(limit - space.costs.lossless[index], least)
    best: tuple[Allocation, Complexity] | None = None
    tried: set[tuple[int, ...]] = set()
    for _ in range(CORRECTIONS):
        found = space.allocate(space.losses(), amounts, room)
        if tuple(found.picks) in tried:
            break
        tried.add(tuple(found.picks))
        counted = space.count(sizes_of(teacher, space.choices, found.picks))
        spare = limit - _amount(counted, budget.kind)
        if spare >= 0 and (best is None or found.loss < best[0].loss):
            best = found, counted
        if spare < 0 and room <= least:
            break
        room = max(found.cost + spare, least)
    if best is None:
        raise unreachable(budget, _amount(counted, budget.kind), space.costs.teacher[index])
    return found_sizes(teacher, space, budget, best[0], best[1], {})


def _amount(counted: Complexity, kind: str) -> int:
    return counted.macs if kind == MACS else counted.params


def found_sizes(
    teacher: nn.Module,
    space: SearchSpace,
    budget: Budget,
    found: Allocation,
    counted: Complexity,
    reached: Mapping[str, object],
) -> SearchResult:
    """What was found, with its report; the last arguments are those of :func:`search_report`."""
    report = search_report(space, budget, found, counted, reached)
    return SearchResult(sizes_of(teacher, space.choices, found.picks), report)
