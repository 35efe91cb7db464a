"""Everything that a search chooses from, with what is known of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from csa2glmha.config.budget import MACS
from csa2glmha.metrics.outputs import IMAGES, Outputs
from csa2glmha.search.allocate import Allocation, allocate
from csa2glmha.search.choices import HIDDEN, LAYER, LOGITS, VALUES, Choice, Key
from csa2glmha.search.costs import ChoiceCosts, CountStudent
from csa2glmha.search.sensitivity import Measured

#: A figure of every choice, in the order of a space's choices.
Figures = Sequence[Sequence[float]]


@dataclass(frozen=True)
class SearchSpace:
    """The choices of every layer and side, with what they cost and lose.

    Attributes:
        choices: the first of each changes nothing.
        costs: counted.
        measured: what each loses, its error to the teacher.
        count: the complexity of a student.
        outputs: of the network, which say what an error is.
    """

    choices: dict[Key, list[Choice]]
    costs: ChoiceCosts
    measured: dict[Key, list[Measured]]
    count: CountStudent
    outputs: Outputs = IMAGES

    def losses(self) -> list[list[float]]:
        """In the order of ``choices``."""
        return [[each.error for each in self.measured[key]] for key in self.choices]

    def amounts(self, kind: str) -> list[list[float]]:
        """What each choice adds to the lossless student's MACs or parameters: nothing, or less than that."""
        index = 0 if kind == MACS else 1
        return [[-float(saved[index]) for saved in self.costs.saved[key]] for key in self.choices]

    def least(self, amounts: Figures) -> float:
        """The least that choices for all layers add up to."""
        return least_total(dict(zip(self.choices, amounts, strict=True)))

    def allocate(self, losses: Figures, amounts: Figures, budget: float) -> Allocation:
        """As :func:`csa2glmha.search.allocate.allocate`, a choice for every side.

        A skipped layer has no sides, so the ways to make a whole layer are what is chosen from.
        """
        counts = {key: len(each) for key, each in self.choices.items()}
        layers = [_worthwhile(group, losses, amounts) for group in _options(counts)]
        found = allocate(
            [[_sum(losses, option) for option in group] for group in layers],
            [[_sum(amounts, option) for option in group] for group in layers],
            budget,
        )
        options = [group[pick] for group, pick in zip(layers, found.picks, strict=True)]
        return replace(found, picks=_picks(options, len(self.choices)))


_SIDES = (LOGITS, VALUES, HIDDEN)
#: One way to make a layer: of its keys, by their number, the choice; the first of those that are not named.
_Option = tuple[tuple[int, int], ...]


def least_total(amounts: Mapping[Key, Sequence[float]]) -> float:
    """The least that choices for all layers add up to; a skipped layer has no sides."""
    figures = list(amounts.values())
    return sum(_sum(figures, option) for option in _cheapest(amounts))


def least_picks(amounts: Mapping[Key, Sequence[float]]) -> list[int]:
    """The choices that add up to the least, in the same order."""
    return _picks(_cheapest(amounts), len(amounts))


def _cheapest(amounts: Mapping[Key, Sequence[float]]) -> list[_Option]:
    """The way to make each layer that adds least."""
    counts, figures = {key: len(each) for key, each in amounts.items()}, list(amounts.values())
    return [min(group, key=lambda option: _sum(figures, option)) for group in _options(counts)]


def _picks(options: Iterable[_Option], keys: int) -> list[int]:
    """Of so many keys the choices, where layers are made in these ways."""
    picks = [0] * keys
    for option in options:
        for place, index in option:
            picks[place] = index
    return picks


def _options(counts: Mapping[Key, int]) -> list[list[_Option]]:
    """The ways to make each layer, where there are so many choices for each side."""
    places = {key: place for place, key in enumerate(counts)}
    found = []
    for name in dict.fromkeys(name for name, _ in counts):
        sides = [(name, side) for side in _SIDES if (name, side) in places]
        options: list[_Option] = [
            tuple((places[key], index) for key, index in zip(sides, picked, strict=True))
            for picked in product(*(range(counts[key]) for key in sides))
        ]
        if (name, LAYER) in places:
            options.append(((places[name, LAYER], 1),))
        found.append(options)
    return found


def _sum(figures: Figures, option: _Option) -> float:
    return sum(figures[place][index] for place, index in option)


def _worthwhile(options: list[_Option], losses: Figures, amounts: Figures) -> list[_Option]:
    """Without those that another beats in both; what is left costs less and less, and loses more."""
    kept: list[_Option] = []
    least = float("inf")
    for option in sorted(options, key=lambda each: (_sum(losses, each), _sum(amounts, each))):
        amount = _sum(amounts, option)
        if amount < least:
            least = amount
            kept.append(option)
    return kept
