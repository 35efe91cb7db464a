"""What choices cost, counted on networks that have them, not by formulas of our own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from csa2glmha.core.progress import progress
from csa2glmha.metrics.complexity import Complexity, count_complexity
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.sizes import Sizes
from csa2glmha.search.choices import HIDDEN, Choice, Key, picks_of_side, sizes_of

ModelT = TypeVar("ModelT", bound=nn.Module)
#: What is done to a student before it is used: MST's mask becomes constants.
Finish = Callable[[ModelT], ModelT]
#: Shapes of a network's inputs that operations are counted for.
ShapesOf = Callable[[ModelT], tuple[tuple[int, ...], ...]]
#: The complexity of the student of these sizes.
CountStudent = Callable[[Sizes], Complexity]


def unchanged(student: ModelT) -> ModelT:
    """Nothing is done."""
    return student


@dataclass(frozen=True)
class ChoiceCosts:
    """Multiply-accumulates and parameters.

    Attributes:
        teacher, lossless: of the whole network, unconverted and at full rank, as (MACs, parameters).
        saved: of every choice, how much less than at full rank, likewise; by layer and side.
    """

    teacher: tuple[int, int]
    lossless: tuple[int, int]
    saved: dict[Key, list[tuple[int, int]]]


def count_costs(
    teacher: nn.Module, choices: Mapping[Key, Sequence[Choice]], before: Complexity, count: CountStudent
) -> ChoiceCosts:
    """Count all choices, in finished students.

    One network has the first choice of every layer's side, the next the second, and so on.

    Args:
        teacher: whose layers the choices are for.
        choices: of every layer and side.
        before: the teacher's.
        count: a student's.
    """
    modules = {name: layer.modules for name, layer in feed_forwards(teacher).items()}
    lossless = count(sizes_of(teacher, choices, [0] * len(choices)))

    def cost(counted: Complexity, key: Key) -> tuple[int, int]:
        """MACs and parameters of a layer; a skipped one is not among what was counted."""
        name, side = key
        parts = modules[name] if side == HIDDEN else (name,)
        params, macs = counted.params_and_macs(part for part in parts if part in counted.modules)
        return macs, params

    saved: dict[Key, list[tuple[int, int]]] = {key: [] for key in choices}
    for side in dict.fromkeys(side for _, side in choices):
        mine = {key: each for key, each in choices.items() if key[1] == side}
        for number in progress(range(max(map(len, mine.values()))), what=f"counting {side}", unit="choice"):
            counted = count(sizes_of(teacher, choices, picks_of_side(choices, side, number)))
            for key in (key for key, each in mine.items() if number < len(each)):
                was, now = cost(lossless, key), cost(counted, key)
                saved[key].append((was[0] - now[0], was[1] - now[1]))
    return ChoiceCosts((before.macs, before.params), (lossless.macs, lossless.params), saved)


def count_student(
    teacher: ModelT, sizes: Sizes, shapes: ShapesOf[ModelT], finish: Finish[ModelT] = unchanged
) -> Complexity:
    """The complexity of the finished student of these sizes."""
    student = copy.deepcopy(teacher)
    sizes.put_in(student)
    student = finish(student)
    return count_complexity(student, *shapes(student))
