"""Learning rate, evaluations and end of a stage, all functions of the step alone.

That is what makes a run that was stopped and resumed the same as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

#: At most so many steps between evaluations, unless that makes too many of them.
EVALUATE_EVERY = 25
#: A stage is looked at so often at least (unless it has fewer steps), and about so often at most.
EVALUATIONS = (8, 40)

#: Only below this share of the peak learning rate does a standstill say anything: the cosine's gain comes at
#: its end.
TAIL = 0.2
#: Evaluations in a row without a gain, there, that end a stage early.
PATIENCE = 4
#: What counts as a gain, in dB.
GAIN = 0.005
#: A stage that has gained nothing over its beginning after this share of its steps, and so many
#: evaluations, ends, too.
HOPE, HOPE_EVALUATIONS = 0.5, 6
#: Evaluations in a row at so many dB below the stage's beginning that say the steps are too large, and
#: what the rate is multiplied with then. How large steps may be depends on how close the student is
#: already: MST++ of rank 8 begins 71 dB from its teacher, Restormer 50, and the rate that serves this one
#: throws that one back to 51.
FALLS, FALL = 2, 0.5
BACK_OFF = 0.25
#: So many times; a stage that still does harm then ends.
MAX_BACK_OFFS = 4
#: Agreement in dB at which student and teacher differ by rounding alone.
PERFECT = 110.0


def learning_rate(step: int, total: int, warmup: float) -> float:
    """The factor of the peak rate: linear warm-up over a share of the steps, then a half cosine to zero."""
    warm = max(int(total * warmup), 1)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total - warm, 1)))


def evaluation_interval(total: int) -> int:
    """Steps between the evaluations of a stage of ``total`` steps."""
    fewest, most = EVALUATIONS
    return max(min(total // fewest, EVALUATE_EVERY), total // most, 1)


def steps_within(seconds: float, step_seconds: float, evaluation_seconds: float) -> int:
    """How many steps, and the evaluations between them, fit into some seconds; at least one."""
    steps = max(int(seconds / max(step_seconds, 1e-6)), 1)
    per_step = step_seconds + evaluation_seconds / evaluation_interval(steps)
    return max(int(seconds / max(per_step, 1e-6)), 1)


def gains_nothing_more(scores: Sequence[float], step: int, total: int, warmup: float) -> bool:
    """Whether a stage can end before its last step.

    Args:
        scores: of its evaluations at this rate so far in dB, that of its start first.
        step, total: steps taken, and planned.
        warmup: share of the steps spent warming up.
    """
    if scores[-1] >= PERFECT:
        return True
    if step >= HOPE * total and len(scores) > HOPE_EVALUATIONS and max(scores) < scores[0] + GAIN:
        return True
    if len(scores) <= PATIENCE:
        return False
    watched = step - (PATIENCE - 1) * evaluation_interval(total)
    if watched < total * warmup or learning_rate(watched, total, warmup) > TAIL:
        return False
    return max(scores[-PATIENCE:]) < max(scores[:-PATIENCE]) + GAIN


def falls(scores: Sequence[float]) -> bool:
    """Whether a stage does harm at its rate: see FALLS.

    Args:
        scores: of its evaluations at this rate in dB, that of its start first.
    """
    return len(scores) > FALLS and max(scores[-FALLS:]) < scores[0] - FALL
