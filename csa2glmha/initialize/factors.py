"""The factors of one layer's projections, each rank made once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.initialize.compact import compact_factors
from csa2glmha.initialize.factorize import SeparableFactors, factorize
from csa2glmha.initialize.problems import (
    Gathered,
    LowRankProblem,
    side_problem,
    teacher_filters,
    value_problem,
)
from csa2glmha.initialize.statistics import LayerStatistics


@dataclass
class Factors:
    """Factors of queries, keys and values of a layer, by rank.

    Attributes:
        form: of the layer.
        gathered: its statistics; None where nothing is approximated.
        iterations: of the refinement, at most.
    """

    form: ChannelAttention
    gathered: Gathered | None
    iterations: int
    _made: dict[tuple[str, int], SeparableFactors] = field(default_factory=dict)

    def queries(self, rank: int) -> SeparableFactors | None:
        """None where there are none, or they are full."""
        return self._of("queries", rank, self._queries)

    def keys(self, rank: int) -> SeparableFactors | None:
        """Likewise."""
        return self._of("keys", rank, self._keys)

    def values(self, rank: int) -> SeparableFactors | None:
        """Likewise."""
        return self._of("values", rank, lambda: value_problem(self._statistics))

    def compact(self, rank: int) -> tuple[SeparableFactors, SeparableFactors, Tensor]:
        """Keys and values of compact attention; see :func:`~csa2glmha.initialize.compact.compact_factors`."""
        keys, values = (teacher_filters(each, self.form) for each in (self.form.keys, self.form.values))
        return compact_factors(self._statistics, keys, values, rank)

    @property
    def _statistics(self) -> LayerStatistics:
        assert isinstance(self.gathered, LayerStatistics)
        return self.gathered

    def _queries(self) -> LowRankProblem:
        assert self._statistics.queries is not None
        return side_problem(self.form.queries, self.form, self._statistics.queries)

    def _keys(self) -> LowRankProblem:
        assert self._statistics.keys is not None
        return side_problem(self.form.keys, self.form, self._statistics.keys)

    def _of(self, side: str, rank: int, problem: Callable[[], LowRankProblem]) -> SeparableFactors | None:
        if not 0 < rank < self.form.head_channels:
            return None
        if (side, rank) not in self._made:
            self._made[side, rank] = factorize(*problem(), rank, iterations=self.iterations)
        return self._made[side, rank]
