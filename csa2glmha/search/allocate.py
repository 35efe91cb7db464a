"""One choice from each of several groups: the least total loss that a budget allows.

This is the multiple-choice knapsack problem. Dynamic programming over a finely divided budget solves it but
for the division; the Lagrangian relaxation bounds from below what any solution can reach, so how far the
result can be from the optimum is known every time.

scipy.optimize.milp was tried in its place, on 100 problems of up to 44 groups. It saved up to 0.12 % of the
loss, in half of them nothing. But its solver writes lines on standard output, amid our JSON, that cannot be
switched off (33 of them here, scipy 1.17; github.com/jump-dev/HiGHS.jl/issues/312), and it may return what
breaks the budget as a solution (github.com/scipy/scipy/issues/24141).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Rounding = Callable[[Values], Values]

#: Parts the budget is divided into. Rounding up to whole parts loses at most one for each group.
PARTS = 20_000


class InfeasibleError(Exception):
    """No choice fits.

    Attributes:
        least: the smallest total cost there is.
    """

    def __init__(self, least: float) -> None:
        super().__init__(f"the least cost is {least}")
        self.least = least


@dataclass(frozen=True)
class Allocation:
    """A choice for every group.

    Attributes:
        picks: its index, group by group.
        loss, cost: the totals.
        bound: no choice within the budget loses less than this.
    """

    picks: list[int]
    loss: float
    cost: float
    bound: float

    @property
    def gap(self) -> float:
        """How much of the loss might be saved by the optimum, at most: 0 is optimal."""
        return 0.0 if self.loss <= 0 else max(0.0, 1 - self.bound / self.loss)


def allocate(
    losses: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float
) -> Allocation:
    """Choose one of each group so that the costs stay within the budget and the losses are least.

    Args:
        losses, costs: of every choice, group by group; finite.
        budget: what the costs may come to.

    Raises:
        InfeasibleError: even the cheapest choices cost more.
    """
    loss = [np.asarray(group, dtype=np.float64) for group in losses]
    cost = [np.asarray(group, dtype=np.float64) for group in costs]
    least = float(sum(group.min() for group in cost))
    if least > budget:
        raise InfeasibleError(least)
    # Costs rounded up never break the budget, but miss what fits it to the last part; rounded down they find
    # that, and sometimes break it.
    found = [_dynamic_programme(loss, cost, budget - least, rounding) for rounding in (np.ceil, np.floor)]
    fitting = [picks for picks in found if _total(cost, picks) <= budget]
    picks = min((_improve(each, loss, cost, budget) for each in fitting), key=lambda each: _total(loss, each))
    return Allocation(
        picks,
        _total(loss, picks),
        _total(cost, picks),
        _lagrangian_bound(loss, cost, budget),
    )


def _total(values: Sequence[Values], picks: Sequence[int]) -> float:
    return float(sum(group[pick] for group, pick in zip(values, picks, strict=True)))


def _dynamic_programme(
    loss: Sequence[Values], cost: Sequence[Values], spare: float, rounding: Rounding
) -> list[int]:
    """Optimal for costs rounded to the parts of what is to spare beyond the cheapest choices."""
    weights = [_parts(group - group.min(), spare, rounding) for group in cost]
    best = np.zeros(PARTS + 1)
    chosen = np.zeros((len(loss), PARTS + 1), dtype=np.int32)
    for number, (group, weight) in enumerate(zip(loss, weights, strict=True)):
        after = np.full(PARTS + 1, np.inf)
        for index in range(len(group)):
            shift = int(weight[index])
            if shift > PARTS:
                continue
            reached = np.full(PARTS + 1, np.inf)
            reached[shift:] = best[: PARTS + 1 - shift] + group[index]
            better = reached < after
            after[better], chosen[number, better] = reached[better], index
        best = after
    part, picks = PARTS, []
    for number in reversed(range(len(loss))):
        pick = int(chosen[number, part])
        picks.append(pick)
        part -= int(weights[number][pick])
    return picks[::-1]


def _parts(extra: Values, spare: float, rounding: Rounding) -> npt.NDArray[np.int64]:
    if spare <= 0:
        return np.where(extra > 0, PARTS + 1, 0).astype(np.int64)
    # A hair less than exact, so that a choice which takes all there is to spare still fits.
    share = np.minimum(extra / spare, 2.0)
    return rounding(share * PARTS * (1 - 1e-12)).astype(np.int64)


def _improve(picks: list[int], loss: Sequence[Values], cost: Sequence[Values], budget: float) -> list[int]:
    """Spend what rounding left over: the best single change that fits, again and again."""
    picks = list(picks)
    while True:
        left = budget - _total(cost, picks)
        best, change = 0.0, None
        for number, (group, price) in enumerate(zip(loss, cost, strict=True)):
            gains = group[picks[number]] - group
            gains = np.where(price - price[picks[number]] <= left, gains, -np.inf)
            index = int(gains.argmax())
            if gains[index] > best + 1e-15 * abs(best):
                best, change = float(gains[index]), (number, index)
        if change is None:
            return picks
        picks[change[0]] = change[1]


def _lagrangian_bound(loss: Sequence[Values], cost: Sequence[Values], budget: float) -> float:
    """The greatest of the lower bounds that a price on the costs gives."""

    def bound(price: float) -> tuple[float, float]:
        """The bound, and its slope: what the choices that minimise it cost beyond the budget."""
        value, spent = 0.0, 0.0
        for group, each in zip(loss, cost, strict=True):
            index = int((group + price * each).argmin())
            value += float(group[index] + price * each[index])
            spent += float(each[index])
        return value - price * budget, spent - budget

    low, high = 0.0, 1.0
    best, slope = bound(0.0)
    if slope <= 0:
        return best
    scale = sum(float(group.max() - group.min()) for group in loss)
    reach = min(
        (float(np.diff(np.unique(each)).min()) for each in cost if len(np.unique(each)) > 1), default=1
    )
    high = max(scale / reach, 1e-300)
    for _ in range(200):
        middle = (low + high) / 2
        value, slope = bound(middle)
        best = max(best, value)
        low, high = (middle, high) if slope > 0 else (low, middle)
    return best
