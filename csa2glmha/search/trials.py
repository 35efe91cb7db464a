"""Choosing ranks, widths and depth under a budget that a finished student shows: of decibels, or of time."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from csa2glmha.config.budget import MACS, Budget
from csa2glmha.reading.sizes import Sizes
from csa2glmha.search.allocate import Allocation
from csa2glmha.search.choices import sizes_of
from csa2glmha.search.search import SearchResult, found_sizes, unreachable
from csa2glmha.search.space import SearchSpace, least_total
from csa2glmha.search.stopwatch import Times

#: Students that are built and evaluated at most.
EVALUATED = 8
#: A loss this close to what was asked for, on the right side, is taken as it is.
CLOSE = 0.98
#: Students that are exported and timed at most.
TIMED = 5
#: Times are not known better than to this part of them.
TIME_TOLERANCE = 0.01


def search_drop(
    teacher: nn.Module,
    space: SearchSpace,
    budget: Budget,
    own: float,
    psnr_of: Callable[[Sizes], float],
) -> SearchResult:
    """The sizes that cost least and lose at most so many decibels of PSNR to the ground truth.

    The loss is that before distillation. Errors to the teacher foretell it roughly, so students are built and
    evaluated until one keeps to the budget and comes close to it.

    Args:
        teacher, space, budget: of MAX_DROP.
        own: the teacher's PSNR to the ground truth.
        psnr_of: a student's.
    """
    amounts, losses = space.amounts(MACS), space.losses()
    least = space.least(amounts)
    room = 10 ** (-own / 10) * (10 ** (budget.target / 10) - 1)
    nothing = [0] * len(space.choices)
    best, lost = Allocation(nothing, 0.0, 0.0, 0.0), 0.0
    tried: list[dict[str, float]] = []
    drops: dict[tuple[int, ...], float] = {tuple(nothing): 0.0}
    low, high = 0.0, float("inf")
    while len(tried) < EVALUATED and (high - low) > (1 - CLOSE) * low:
        found = space.allocate(amounts, losses, room)
        picks = tuple(found.picks)
        if picks not in drops:
            drops[picks] = own - psnr_of(sizes_of(teacher, space.choices, found.picks))
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
    counted = space.count(sizes_of(teacher, space.choices, best.picks))
    return found_sizes(
        teacher, space, budget, _as_errors(space, best), counted, {"drop": lost, "tried": tried}
    )


def _as_errors(space: SearchSpace, found: Allocation) -> Allocation:
    """The same picks with what they lose as the loss; the bound, on the cost, goes with it in proportion."""
    lost = sum(each[pick] for each, pick in zip(space.losses(), found.picks, strict=True))
    return Allocation(found.picks, lost, found.loss, found.bound)


def check_time(budget: Budget, times: Times) -> None:
    """Before anything else is measured.

    Raises:
        UsageError: the budget cannot be met, and what can.
    """
    least = times.lossless + least_total(
        {key: [-each for each in saved] for key, saved in times.saved.items()}
    )
    if least > budget.limit(times.teacher):
        raise unreachable(budget, least, times.teacher)


def search_latency(
    teacher: nn.Module,
    space: SearchSpace,
    budget: Budget,
    times: Times,
    share_of: Callable[[Sizes], float],
) -> SearchResult:
    """The sizes that lose least within so much time, by a model of it that is checked on what it finds.

    Where the model is off, the next student is to make up for as much.

    Args:
        teacher: in eval mode.
        space, budget: of LATENCY.
        times: of the teacher, of the lossless student, and of every choice.
        share_of: a student's measured time over the teacher's.

    Raises:
        UsageError: the budget cannot be met.
    """
    check_time(budget, times)

    def milliseconds_of(found: Allocation) -> float:
        return times.teacher * share_of(sizes_of(teacher, space.choices, found.picks))

    limit = budget.limit(times.teacher)
    tried = _timed(space, limit, times, milliseconds_of)
    fitting = [each for each in tried if each[1] <= limit * (1 + TIME_TOLERANCE)]
    if not fitting:
        raise unreachable(budget, min(each for _, each in tried), times.teacher)
    best, milliseconds = min(fitting, key=lambda each: each[0].loss)
    counted = space.count(sizes_of(teacher, space.choices, best.picks))
    reached = {
        "time_share": milliseconds / times.teacher,
        "milliseconds": milliseconds,
        "tried": [
            {
                "predicted": (each.cost + times.lossless) / times.teacher,
                "measured": measured / times.teacher,
            }
            for each, measured in tried
        ],
    }
    return found_sizes(teacher, space, budget, best, counted, reached)


def _timed(
    space: SearchSpace, limit: float, times: Times, milliseconds_of: Callable[[Allocation], float]
) -> list[tuple[Allocation, float]]:
    """Students that come closer and closer to so many milliseconds, each with its own."""
    costs = [[-saved for saved in times.saved[key]] for key in space.choices]
    least = space.least(costs)
    room = max(limit - times.lossless, least)
    tolerance = TIME_TOLERANCE * limit
    tried: list[tuple[Allocation, float]] = []
    while len(tried) < TIMED:
        found = space.allocate(space.losses(), costs, room)
        if any(found.picks == other.picks for other, _ in tried):
            break
        tried.append((found, milliseconds_of(found)))
        spare = limit - tried[-1][1]
        cheapest, lossless = found.cost <= least, found.loss <= 0
        if -tolerance <= spare <= 2 * tolerance or (cheapest if spare < 0 else lossless):
            break
        # What was found, not the room it was given: choices leave some of that.
        room = max(found.cost + spare, least)
        if len(tried) == TIMED - 1 and all(each > limit + tolerance for _, each in tried):
            room = least
    return tried
