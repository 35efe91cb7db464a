"""What a search chooses from: ranks of attention layers, widths of feed-forward networks, layers to skip.

The two sides of an attention layer, its logits and its values, add up, in cost and to a good approximation in
error, so each is a choice of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from torch import nn

from csa2glmha.attention.canonical import ChannelAttention
from csa2glmha.attention.config import GLMHAConfig
from csa2glmha.config.ranks import Ranks
from csa2glmha.feedforward.form import FeedForward, kept_channels
from csa2glmha.initialize.configure import layer_config, worthwhile
from csa2glmha.reading.layers import AttentionLayer, attention_layers
from csa2glmha.reading.sizes import Sizes

LOGITS, VALUES = "logits", "values"
SIDES = (LOGITS, VALUES)
#: The width of a feed-forward network, and whether an attention layer is there at all.
HIDDEN, LAYER = "hidden", "layer"
#: A layer's name and one of these four.
Key = tuple[str, str]

#: Ranks per head that are tried, where a head has more channels.
KEY_RANKS = (32, 24, 16, 12, 8, 6, 4, 2)
#: Ranks of queries and keys where both are low, from which on full queries pay no more.
QUERY_AND_KEY_RANKS = ((16, 16), (16, 8), (8, 8), (8, 4), (4, 4))
VALUE_RANKS = (32, 24, 20, 16, 12, 8, 6, 4, 2)
#: A layer's maps come in multiples of this many channels: between them, time does not fall with rank.
CHANNELS_MULTIPLE = 8
#: Shares of hidden channels that are tried.
WIDTH_SHARES = (7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8)


@dataclass(frozen=True)
class Choice:
    """One way to make one part of a network.

    Attributes:
        layer: its name.
        side: LOGITS, VALUES, HIDDEN or LAYER.
    """

    layer: str
    side: str

    @property
    def label(self) -> str:
        """What is chosen, in short."""
        raise NotImplementedError

    @property
    def full(self) -> bool:
        """Nothing is approximated."""
        raise NotImplementedError

    @property
    def leaves_out(self) -> bool:
        """The network goes without the layer."""
        return False


@dataclass(frozen=True)
class RankChoice(Choice):
    """Ranks of one side of an attention layer.

    Attributes:
        ranks: with the other side at full rank.
        config: of the layer with these ranks.
    """

    ranks: Ranks
    config: GLMHAConfig

    @property
    def label(self) -> str:
        """Such as "q full k 8" or "v 8"."""
        ranks = self.ranks

        def show(rank: int | None) -> str:
            return "full" if rank is None else str(rank)

        return f"v {show(ranks.v)}" if self.side == VALUES else f"q {show(ranks.q)} k {show(ranks.k)}"

    @property
    def full(self) -> bool:
        """All ranks are full."""
        return self.config.full


@dataclass(frozen=True)
class WidthChoice(Choice):
    """The hidden channels of a feed-forward network.

    Attributes:
        width: those that are kept; 0: the layer is skipped.
        hidden: those of the teacher.
    """

    width: int
    hidden: int

    @property
    def label(self) -> str:
        """Such as "width 64 of 127"."""
        return "skipped" if self.leaves_out else f"width {self.width} of {self.hidden}"

    @property
    def full(self) -> bool:
        """All are kept."""
        return self.width == self.hidden

    @property
    def leaves_out(self) -> bool:
        """None is kept."""
        return not self.width


@dataclass(frozen=True)
class SkipChoice(Choice):
    """Whether the network goes without an attention layer."""

    skipped: bool

    @property
    def label(self) -> str:
        """In a word."""
        return "skipped" if self.skipped else "kept"

    @property
    def full(self) -> bool:
        """It is there."""
        return not self.skipped

    @property
    def leaves_out(self) -> bool:
        """It is not."""
        return self.skipped


def layer_choices(name: str, form: ChannelAttention) -> dict[str, list[RankChoice]]:
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
        side: list(_distinct(RankChoice(name, side, ranks, layer_config(form, ranks)) for ranks in wanted))
        for side, wanted in ((LOGITS, logits), (VALUES, values))
    }


def _distinct(choices: Iterator[RankChoice]) -> Iterator[RankChoice]:
    """Without those that make the same layer, or widths that run no faster than the next."""
    for _, same in groupby(choices, key=lambda choice: choice.config):
        choice = next(same)
        if choice.full or choice.config.logits == "modes" or _runs_fast(choice):
            yield choice


def _runs_fast(choice: RankChoice) -> bool:
    config = choice.config
    if (config.heads * config.head_channels) % CHANNELS_MULTIPLE:
        return True  # none of this layer's widths is a multiple
    changed = (
        (config.rank_v,)
        if choice.side == VALUES
        else tuple(rank for rank in (config.rank_q, config.rank_k) if rank < config.head_channels)
    )
    return all((config.heads * rank) % CHANNELS_MULTIPLE == 0 for rank in changed)


def width_choices(name: str, layer: FeedForward, skippable: bool) -> list[WidthChoice]:
    """The first is full width, the others follow in falling order; the last skips the layer if it can be."""
    hidden = layer.hidden
    widths = dict.fromkeys(kept_channels(hidden, share) for share in (1, *WIDTH_SHARES))
    return [WidthChoice(name, HIDDEN, width, hidden) for width in (*widths, *([0] if skippable else []))]


def rank_choices(layers: Mapping[str, AttentionLayer]) -> dict[Key, list[RankChoice]]:
    """The ranks of every attention layer and side."""
    return {
        (name, side): choices
        for name, layer in layers.items()
        for side, choices in layer_choices(name, layer.form).items()
    }


def all_choices(
    layers: Mapping[str, AttentionLayer],
    feed_forwards: Mapping[str, FeedForward],
    skippable: Collection[str],
) -> dict[Key, list[Choice]]:
    """Everything that a search chooses from; the first of each changes nothing.

    Args:
        layers: the attention.
        feed_forwards: those whose width may change.
        skippable: layers that the network can go without.
    """
    found: dict[Key, list[Choice]] = {key: list(each) for key, each in rank_choices(layers).items()}
    for name in layers:
        if name in skippable:
            found[name, LAYER] = [SkipChoice(name, LAYER, False), SkipChoice(name, LAYER, True)]
    for name, layer in feed_forwards.items():
        found[name, HIDDEN] = list(width_choices(name, layer, name in skippable))
    return found


def sizes_of(teacher: nn.Module, choices: Mapping[Key, Sequence[Choice]], picks: Sequence[int]) -> Sizes:
    """The sizes of a student.

    Args:
        teacher: whose layers the choices are for.
        choices: of layers and sides. A layer that has none stays as it is, a side that has none is full.
        picks: which of each is taken, in the same order.
    """
    layers = attention_layers(teacher)
    picked = {key: each[pick] for (key, each), pick in zip(choices.items(), picks, strict=True)}
    skipped = tuple(name for (name, _), choice in picked.items() if choice.leaves_out)
    ranks: dict[str, Ranks] = {}
    widths = {}
    for (name, side), choice in picked.items():
        if name in skipped:
            continue
        if isinstance(choice, RankChoice):
            rest = ranks.get(name, Ranks())
            both = replace(rest, v=choice.ranks.v) if side == VALUES else replace(choice.ranks, v=rest.v)
            ranks[name] = both
        elif isinstance(choice, WidthChoice) and not choice.full:
            widths[name] = choice.width
    configs = {name: layer_config(layers[name].form, each) for name, each in ranks.items()}
    return Sizes(worthwhile(layers, configs), widths, skipped)


def picks_of_side(choices: Mapping[Key, Sequence[Choice]], side: str, index: int) -> list[int]:
    """On this side the choice of that index, where there is one; else the first, which changes nothing."""
    return [index if own == side and index < len(each) else 0 for (_, own), each in choices.items()]
