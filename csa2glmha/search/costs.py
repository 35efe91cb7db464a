"""What choices cost, counted on networks that have them, not by formulas of our own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.config.ranks import Ranks
from csa2glmha.core.progress import progress
from csa2glmha.initialize.configure import plan_layers
from csa2glmha.metrics.complexity import Complexity, count_complexity
from csa2glmha.reading.layers import attention_layers, replace_layers
from csa2glmha.search.choices import Choice

ModelT = TypeVar("ModelT", bound=nn.Module)
Key = tuple[str, str]
#: What is done to a student before it is used: MST's mask becomes constants.
Finish = Callable[[ModelT], ModelT]
#: Shapes of a network's inputs that operations are counted for.
ShapesOf = Callable[[ModelT], tuple[tuple[int, ...], ...]]
#: The complexity of the student that has these layers.
CountStudent = Callable[[Mapping[str, GLMHAConfig]], Complexity]


def unchanged(student: ModelT) -> ModelT:
    """Nothing is done."""
    return student


@dataclass(frozen=True)
class Costs:
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
) -> Costs:
    """Count all choices, in finished students.

    One network has the first choice of every layer's side, the next the second, and so on.

    Args:
        teacher: whose layers the choices are for.
        choices: of every layer and side.
        before: the teacher's.
        count: a student's.
    """
    full = plan_layers(attention_layers(teacher), Ranks())
    lossless = count(full)
    saved: dict[Key, list[tuple[int, int]]] = {key: [] for key in choices}
    for side in dict.fromkeys(side for _, side in choices):
        mine = {name: each for (name, of), each in choices.items() if of == side}
        for number in progress(range(max(map(len, mine.values()))), what=f"counting {side}", unit="rank"):
            present = {name: each[number] for name, each in mine.items() if number < len(each)}
            configs = full | {name: choice.config for name, choice in present.items()}
            counted = count(configs)
            for name in present:
                was, now = lossless.modules[name], counted.modules[name]
                saved[name, side].append((was.macs - now.macs, was.params - now.params))
    return Costs((before.macs, before.params), (lossless.macs, lossless.params), saved)


def count_configs(
    teacher: ModelT,
    configs: Mapping[str, GLMHAConfig],
    shapes: ShapesOf[ModelT],
    finish: Finish[ModelT] = unchanged,
) -> Complexity:
    """The complexity of the finished student that has these layers."""
    student = copy.deepcopy(teacher)
    replace_layers(student, dict(configs))
    student = finish(student)
    return count_complexity(student, *shapes(student))
