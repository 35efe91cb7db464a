"""Choosing ranks under a budget that only a finished student shows: of decibels, or of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from csa2glmha.models import RestorationModel
from csa2glmha.search.allocate import Allocation, allocate
from csa2glmha.search.budget import MACS, Budget
from csa2glmha.search.costs import Key, count_configs
from csa2glmha.search.search import Configs, FoundRanks, SearchSpace, configs_of, found_ranks, unreachable

#: Students that are built and judged at most.
JUDGED = 8
#: A loss this close to what was asked for, on the right side, is taken as it is.
CLOSE = 0.98
#: Networks that are exported and timed at most.
TIMED = 3
#: Times are not known better than to this part of them.
TIME_TOLERANCE = 0.01


def search_drop(
    teacher: RestorationModel,
    space: SearchSpace,
    budget: Budget,
    own: float,
    judge: Callable[[Configs], float],
) -> FoundRanks:
    """The ranks that cost least and lose at most so many decibels of PSNR to the truth, before distillation.

    Errors to the teacher foretell the loss to the truth roughly, so students are built and judged until one
    keeps to the budget and comes close to it.

    Args:
        teacher, space, budget: of MAX_DROP.
        own: the teacher's PSNR to the truth.
        judge: a student's.
    """
    amounts, losses = space.amounts(MACS), space.losses()
    least = sum(map(min, amounts))
    room = 10 ** (-own / 10) * (10 ** (budget.target / 10) - 1)
    nothing = [0] * len(space.choices)
    best, lost = Allocation(nothing, 0.0, 0.0, 0.0), 0.0
    tried: list[dict[str, float]] = []
    drops: dict[tuple[int, ...], float] = {tuple(nothing): 0.0}
    low, high = 0.0, float("inf")
    while len(tried) < JUDGED and (high - low) > (1 - CLOSE) * low:
        found = allocate(amounts, losses, room)
        picks = tuple(found.picks)
        if picks not in drops:
            drops[picks] = own - judge(configs_of(teacher, space, found))
            tried.append({"error": found.cost, "drop": drops[picks]})
        drop = drops[picks]
        if drop <= budget.target:
            low = room
            if found.loss <= best.loss:
                best, lost = found, drop
            if drop >= CLOSE * budget.target or found.loss <= least:
                break
        else:
            high = room
        # Towards the target in proportion, and between what is known to be too little and too much.
        aim = room * max(0.25, min(4.0, budget.target / max(drop, 1e-6)))
        room = aim if low < aim < high else (low + min(high, 4 * max(low, 1e-12))) / 2
    counted = count_configs(teacher, configs_of(teacher, space, best), space.frame, space.finish)
    return found_ranks(space, budget, _as_errors(space, best), counted, {"drop": lost, "tried": tried})


def _as_errors(space: SearchSpace, found: Allocation) -> Allocation:
    """The same picks with what they lose as the loss; the bound, on the cost, goes with it in proportion."""
    lost = sum(each[pick] for each, pick in zip(space.losses(), found.picks, strict=True))
    return Allocation(found.picks, lost, found.loss, found.bound)


def check_time(budget: Budget, times: Mapping[Key, Sequence[float]], lossless: float, teacher: float) -> None:
    """Before anything else is measured; the arguments are those of :func:`search_latency`.

    Raises:
        UsageError: the budget cannot be met, and what can.
    """
    least = lossless - sum(max(each) for each in times.values())
    if least > budget.limit(teacher):
        raise unreachable(budget, least, teacher)


def search_latency(
    teacher: RestorationModel,
    space: SearchSpace,
    budget: Budget,
    times: Mapping[Key, Sequence[float]],
    lossless: float,
    whole: float,
    share_of: Callable[[Configs], float],
) -> FoundRanks:
    """The ranks that lose least within so much time, by a model of it that is checked on what it finds.

    Args:
        teacher: in eval mode.
        space, budget: of LATENCY.
        times: what each choice saves, in milliseconds.
        lossless, whole: of the lossless student and of the teacher.
        share_of: a student's measured time over the teacher's.

    Raises:
        UsageError: the budget cannot be met.
    """
    limit = budget.limit(whole)
    check_time(budget, times, lossless, whole)
    costs = [[-saved for saved in times[key]] for key in space.choices]
    room = limit - lossless
    tried: list[dict[str, float]] = []
    for _ in range(TIMED):
        found = allocate(space.losses(), costs, room)
        share = share_of(configs_of(teacher, space, found))
        tried.append({"predicted": (found.cost + lossless) / whole, "measured": share})
        excess = share - limit / whole
        if excess <= TIME_TOLERANCE * share or room <= sum(map(min, costs)):
            break
        room = max(room - excess * whole, sum(map(min, costs)))
    counted = count_configs(teacher, configs_of(teacher, space, found), space.frame, space.finish)
    reached = {"time_share": share, "milliseconds": share * whole, "tried": tried}
    return found_ranks(space, budget, found, counted, reached)
