"""What choices cost, counted on networks that have them, not by formulas of our own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from csa2glmha.core.progress import progress
from csa2glmha.metrics.alone import CountedAlone, calls_of
from csa2glmha.metrics.complexity import Complexity, count_complexity
from csa2glmha.networks.foreign import users_own
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


@dataclass(frozen=True)
class StudentCount(Generic[ModelT]):
    """Counts students of a teacher.

    Attributes:
        teacher: whose layers their sizes are of.
        shapes: of a student's inputs.
        finish: what is done to a student before it is used.
    """

    teacher: ModelT
    shapes: ShapesOf[ModelT]
    finish: Finish[ModelT] = unchanged

    def student(self, sizes: Sizes) -> ModelT:
        """The finished student of these sizes, with weights of no meaning."""
        student = copy.deepcopy(self.teacher)
        sizes.put_in(student)
        return self.finish(student)

    def __call__(self, sizes: Sizes) -> Complexity:
        """Its complexity."""
        student = self.student(sizes)
        return count_complexity(student, *self.shapes(student))


def count_costs(
    choices: Mapping[Key, Sequence[Choice]], before: Complexity, count: StudentCount[ModelT]
) -> ChoiceCosts:
    """Count all choices, in finished students.

    One network has the first choice of every layer's side, the next the second, and so on. Of each only the
    layers are counted that the side is of, but where they cannot run alone.

    Args:
        choices: of every layer and side of the teacher.
        before: the teacher's complexity.
        count: a student's.
    """
    parts = _parts(count.teacher, choices)
    full = count.student(sizes_of(count.teacher, choices, [0] * len(choices)))
    lossless = count_complexity(full, *count.shapes(full))
    alone = CountedAlone({})
    if not lossless.by_values:  # they would have to be called with values
        names = {name for each in parts.values() if each.alone for name in each.names}
        alone = CountedAlone(calls_of(full, names, *count.shapes(full)))
    saved: dict[Key, list[tuple[int, int]]] = {key: [] for key in choices}
    for side in dict.fromkeys(side for _, side in choices):
        mine = {key: each for key, each in choices.items() if key[1] == side}
        apart = all(parts[key].alone and alone.calls.keys() >= set(parts[key].names) for key in mine)
        for number in progress(range(max(map(len, mine.values()))), what=f"counting {side}", unit="choice"):
            student = count.student(sizes_of(count.teacher, choices, picks_of_side(choices, side, number)))
            whole = None if apart else count_complexity(student, *count.shapes(student))
            for key in (key for key, each in mine.items() if number < len(each)):
                # A skipped layer is not among what was counted.
                there = [name for name in parts[key].names if whole is None or name in whole.modules]
                now = _counted_alone(alone, student, there) if whole is None else whole.params_and_macs(there)
                params, macs = lossless.params_and_macs(parts[key].names)
                saved[key].append((macs - now[1], params - now[0]))
    return ChoiceCosts((before.macs, before.params), (lossless.macs, lossless.params), saved)


@dataclass(frozen=True)
class _Parts:
    """The modules that a choice changes, and whether each can be called alone as at full rank."""

    names: tuple[str, ...]
    alone: bool = True


def _parts(teacher: nn.Module, choices: Iterable[Key]) -> dict[Key, _Parts]:
    narrowed = {
        name: _Parts(layer.modules, layer.parts.whole) for name, layer in feed_forwards(teacher).items()
    }
    return {key: narrowed[key[0]] if key[1] == HIDDEN else _Parts((key[0],)) for key in choices}


def _counted_alone(alone: CountedAlone, student: nn.Module, names: Iterable[str]) -> tuple[int, int]:
    """Parameters and MACs."""
    modules = [(name, users_own(student).get_submodule(name)) for name in names]
    params = sum(parameter.numel() for _, module in modules for parameter in module.parameters())
    return params, sum(alone.macs(name, module) for name, module in modules)
