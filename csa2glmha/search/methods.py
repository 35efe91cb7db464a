"""Other methods than ours, each at the setting whose multiply-accumulates come closest to a student's."""

from __future__ import annotations

import bisect
import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from csa2glmha.data.batches import Inputs
from csa2glmha.initialize.baselines import (
    COMPACT,
    DESCRIPTIONS,
    STATIC,
    SVD,
    baseline_configs,
    initialise_baseline,
    supported,
)
from csa2glmha.initialize.feedforward import narrow_feed_forwards
from csa2glmha.initialize.pruning import MAGNITUDE, WANDA, pruned_student
from csa2glmha.metrics.complexity import Complexity
from csa2glmha.networks import RestorationModel
from csa2glmha.networks.skipped import skip
from csa2glmha.reading.feedforwards import feed_forwards
from csa2glmha.reading.layers import attention_layers
from csa2glmha.reading.sizes import Sizes

#: Ranks that are tried for the same multiply-accumulates.
RANKS = (2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48)

#: Operations of a network, once it is finished.
Count = Callable[[RestorationModel], Complexity]


@dataclass(frozen=True)
class Setting:
    """How far a method goes.

    Attributes:
        words: the same for the report.
        rank: of keys and values; None where the attention stays.
        widths: hidden channels that feed-forward networks keep, where they lose some.
        share: of the hidden channels of all feed-forward networks that are kept, where the method decides it.
        least: of a method that cannot go so far: what its smallest student needs.
    """

    words: str
    rank: int | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    share: float | None = None
    least: Complexity | None = None


class Method(Protocol):
    """One way to make students."""

    @property
    def name(self) -> str:
        """In files and reports."""
        ...

    @property
    def description(self) -> str:
        """In a few words."""
        ...

    @property
    def possible(self) -> bool:
        """Whether the teacher's layers have such a form."""
        ...

    def setting(self, macs: int) -> Setting:
        """That whose multiply-accumulates come closest."""
        ...

    def student(self, setting: Setting, batches: Sequence[Inputs]) -> RestorationModel:
        """The student before distillation; ``batches``: calibration inputs."""
        ...


@dataclass(frozen=True)
class LowRank:
    """Keys and values of a lower rank, made in another way than ours.

    Attributes:
        teacher: in eval mode.
        kind: SVD, STATIC or COMPACT.
        count: operations of a network.
        widths, skipped: hidden channels of the student's feed-forward networks that lost some, and those that
            it goes without. It is the same here: the methods differ in the attention alone.
    """

    teacher: RestorationModel
    kind: str
    count: Count
    widths: Mapping[str, int]
    skipped: Sequence[str] = ()

    @property
    def name(self) -> str:
        """As :attr:`Method.name`."""
        return self.kind

    @property
    def description(self) -> str:
        """As :attr:`Method.description`."""
        return DESCRIPTIONS[self.kind]

    @property
    def possible(self) -> bool:
        """As :attr:`Method.possible`."""
        return supported(attention_layers(self.teacher), self.kind)

    def setting(self, macs: int) -> Setting:
        """The rank whose multiply-accumulates come closest; they grow with it."""
        layers = attention_layers(self.teacher)
        widest = max(layer.form.head_channels for layer in layers.values())

        @functools.cache
        def macs_of(rank: int) -> int:
            student = copy.deepcopy(self.teacher)
            configs = baseline_configs(layers, self.kind, rank)
            Sizes(configs, self.widths, tuple(self.skipped)).put_in(student)
            return self.count(student).macs

        ranks = [rank for rank in RANKS if rank < widest]
        above = bisect.bisect_left(ranks, macs, key=macs_of)
        nearest = ranks[max(above - 1, 0) : above + 1]
        rank = min(nearest, key=lambda rank: abs(macs_of(rank) - macs), default=widest)
        beside = "; feed-forward networks as in this student" if self.widths or self.skipped else ""
        return Setting(f"rank {rank}{beside}", rank, self.widths)

    def student(self, setting: Setting, batches: Sequence[Inputs]) -> RestorationModel:
        """As :meth:`Method.student`."""
        assert setting.rank is not None
        student, _ = initialise_baseline(self.teacher, self.kind, setting.rank, batches)
        if setting.widths:
            narrow_feed_forwards(self.teacher, student, setting.widths, batches)
        skip(student, self.skipped)
        return student


@dataclass(frozen=True)
class Pruned:
    """Feed-forward networks without some of their hidden channels; the attention stays as it is.

    Attributes:
        teacher: in eval mode.
        kind: MAGNITUDE or WANDA.
        refit: the rest is refitted.
        count: operations of a network.
    """

    teacher: RestorationModel
    kind: str
    refit: bool
    count: Count

    @property
    def name(self) -> str:
        """As :attr:`Method.name`."""
        return f"{self.kind}-refit" if self.refit else self.kind

    @property
    def description(self) -> str:
        """As :attr:`Method.description`."""
        measure = "weights" if self.kind == MAGNITUDE else "weights times activations"
        rest = ", the rest refitted by least squares" if self.refit else ""
        return f"hidden channels of the smallest {measure} pruned{rest}"

    @property
    def possible(self) -> bool:
        """As :attr:`Method.possible`."""
        return bool(feed_forwards(self.teacher))

    def setting(self, macs: int) -> Setting:
        """The share of hidden channels, the same in all networks; operations grow linearly with it."""
        hidden = {name: layer.hidden for name, layer in feed_forwards(self.teacher).items()}
        most, least = self._counted(hidden), self._counted(dict.fromkeys(hidden, 1))
        if least.macs > macs:
            words = "cannot be made so small: this is with one hidden channel in each feed-forward network"
            return Setting(words, least=least)
        part = (macs - least.macs) / max(most.macs - least.macs, 1)
        widths = {name: min(round(1 + part * (count - 1)), count) for name, count in hidden.items()}
        share = sum(widths.values()) / sum(hidden.values())
        words = f"{share:.0%} of the hidden channels kept; attention as the teacher's"
        return Setting(words, None, widths, share)

    def _counted(self, widths: Mapping[str, int]) -> Complexity:
        student = copy.deepcopy(self.teacher)
        Sizes(widths=widths).put_in(student)
        return self.count(student)

    def student(self, setting: Setting, batches: Sequence[Inputs]) -> RestorationModel:
        """As :meth:`Method.student`."""
        return pruned_student(self.teacher, self.kind, self.refit, setting.widths, batches)


def methods(
    teacher: RestorationModel, widths: Mapping[str, int], skipped: Sequence[str], count: Count
) -> list[Method]:
    """The methods in the order of the report: those for the attention and, where the student's feed-forward
    networks have lost hidden channels or some are left out, those for feed-forward networks.

    Args:
        teacher: in eval mode.
        widths: hidden channels of the student's feed-forward networks that lost some.
        skipped: layers that the student goes without, of whatever kind.
        count: operations of a network.
    """
    there = feed_forwards(teacher)
    gone = tuple(name for name in skipped if name in there)
    found: list[Method] = [LowRank(teacher, kind, count, widths, gone) for kind in (SVD, STATIC, COMPACT)]
    if widths or gone:
        found += [
            Pruned(teacher, kind, refit, count) for kind in (MAGNITUDE, WANDA) for refit in (False, True)
        ]
    return found
