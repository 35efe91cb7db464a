"""Everything that a search chooses from, with what is known of it."""

from __future__ import annotations

from dataclasses import dataclass

from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.config.budget import MACS
from csa2glmha.metrics.outputs import IMAGES, Outputs
from csa2glmha.search.choices import Choice
from csa2glmha.search.costs import Costs, CountStudent, Key
from csa2glmha.search.sensitivity import Measured

#: The layers of a student, by name.
Configs = dict[str, GLMHAConfig]


@dataclass(frozen=True)
class SearchSpace:
    """The choices of every layer and side, with what they cost and lose.

    Attributes:
        choices: the first of each is full rank.
        costs: counted.
        measured: what each loses, its error to the teacher.
        count: the complexity of a student.
        outputs: of the network, which say what an error is.
    """

    choices: dict[Key, list[Choice]]
    costs: Costs
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
