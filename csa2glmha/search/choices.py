"""What a rank search chooses from: for each layer, ways to make its logits and ways to make its values.

The two sides of a layer add up, in cost and to a good approximation in error, so each is a choice of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.config.ranks import Ranks
from csa2glmha.initialize.configure import layer_config
from csa2glmha.reading.layers import AttentionLayer

LOGITS, VALUES = "logits", "values"
SIDES = (LOGITS, VALUES)

#: Ranks per head that are tried, where a head has more channels.
KEY_RANKS = (32, 24, 16, 12, 8, 6, 4, 2)
#: Ranks of queries and keys where both are low, from which on full queries pay no more.
QUERY_AND_KEY_RANKS = ((16, 16), (16, 8), (8, 8), (8, 4), (4, 4))
VALUE_RANKS = (32, 24, 20, 16, 12, 8, 6, 4, 2)
#: A layer's maps come in multiples of this many channels: between them, time does not fall with rank.
CHANNELS_MULTIPLE = 8


@dataclass(frozen=True)
class Choice:
    """One way to make one side of a layer.

    Attributes:
        layer: its name.
        side: LOGITS or VALUES.
        ranks: with the other side at full rank.
        config: of the layer with these ranks.
    """

    layer: str
    side: str
    ranks: Ranks
    config: GLMHAConfig

    @property
    def label(self) -> str:
        """The ranks in short, such as "q full k 8" or "v 8"."""
        ranks = self.ranks

        def show(rank: int | None) -> str:
            return "full" if rank is None else str(rank)

        return f"v {show(ranks.v)}" if self.side == VALUES else f"q {show(ranks.q)} k {show(ranks.k)}"

    @property
    def full(self) -> bool:
        """Nothing is approximated."""
        return self.config.full


def layer_choices(name: str, form: ChannelAttention) -> dict[str, list[Choice]]:
    """By side; the first is full rank, the others follow in falling order of what they keep.

    Ranks that a layer would not use, because another way costs less, are left out.
    """
    c = form.head_channels
    logits = [Ranks(), *(Ranks(k=rank) for rank in KEY_RANKS if rank < c)]
    if not form.from_moments:
        logits += [Ranks(q=q, k=k) for q, k in QUERY_AND_KEY_RANKS if q < c]
    logits.append(Ranks(k=0))
    values = [Ranks(), *(Ranks(v=rank) for rank in VALUE_RANKS if rank < c)]
    return {
        side: list(_distinct(Choice(name, side, ranks, layer_config(form, ranks)) for ranks in wanted))
        for side, wanted in ((LOGITS, logits), (VALUES, values))
    }


def _distinct(choices: Iterator[Choice]) -> Iterator[Choice]:
    """Without those that make the same layer, or widths that run no faster than the next."""
    for _, same in groupby(choices, key=lambda choice: choice.config):
        choice = next(same)
        if choice.full or choice.config.logits == "modes" or _runs_fast(choice):
            yield choice


def _runs_fast(choice: Choice) -> bool:
    config = choice.config
    if (config.heads * config.head_channels) % CHANNELS_MULTIPLE:
        return True  # none of this layer's widths is a multiple
    changed = (
        (config.rank_v,)
        if choice.side == VALUES
        else tuple(rank for rank in (config.rank_q, config.rank_k) if rank < config.head_channels)
    )
    return all((config.heads * rank) % CHANNELS_MULTIPLE == 0 for rank in changed)


def all_choices(layers: Mapping[str, AttentionLayer]) -> dict[tuple[str, str], list[Choice]]:
    """The choices of every layer and side."""
    return {
        (name, side): choices
        for name, layer in layers.items()
        for side, choices in layer_choices(name, layer.form).items()
    }


def combined(logits: Choice, values: Choice) -> Ranks:
    """The ranks of a layer with these two sides."""
    return replace(logits.ranks, v=values.ranks.v)
