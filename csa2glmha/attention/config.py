"""What fixes the shapes of a GLMHA layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from csa2glmha.attention.core import Activation

#: Sides of the generators' depthwise kernels.
KERNEL_SIZES = (1, 3, 5, 7)
#: Fields that the first student files do not have.
_LATER_FIELDS = ("dilation", "query_channels", "activation")


@dataclass(frozen=True)
class GLMHAConfig:
    """Everything that fixes the shapes of one GLMHA layer.

    Attributes:
        channels: C, of the input.
        out_channels: of the output projection; 0: there is none, only the map is made.
        heads: number of heads.
        head_channels: c of every head.
        rank_q, rank_k, rank_v: channels generated per head for queries, keys and values; c means full,
            and then the maps are used as they are, with no expansion. Queries and keys may both be 0.
        attention: "expanded" (softmax over c x c) or "compact" (softmax over rank_k = rank_v keys).
        kernel_size: of the depthwise part of the generators, 1 for none.
        dilation: likewise.
        query_channels: of an input that queries alone are made from; None: one input for all.
        activation: what makes the map of the logits; ReLU has no compact form.
        bias: the generators carry biases.
        output_bias: the output projection carries a bias.
        bias_rank: rank per head of the static logit bias; 0 leaves it out.
        guide_width: hidden units of the calibration network, and rank-one logit modes per head that it
            steers; 0 leaves it out.
        logits: what they are made from: "maps" (generated queries and keys), "gram" (the second moment of
            the input, with queries and keys full), "subspace" (the second moment of one projection of
            rank_q = rank_k channels per head, which expresses both) or "modes" (rank_q = rank_k = 0: static
            and guided modes are all there is).
        rank_pos: channels generated per head for the values that a branch beside the attention takes, such
            as a positional embedding; None makes them as they are.
    """

    channels: int
    out_channels: int
    heads: int
    head_channels: int
    rank_q: int
    rank_k: int
    rank_v: int
    attention: str = "expanded"
    kernel_size: int = 3
    bias: bool = False
    output_bias: bool = False
    bias_rank: int = 0
    guide_width: int = 0
    logits: str = "maps"
    rank_pos: int | None = None
    dilation: int = 1
    query_channels: int | None = None
    activation: Activation = "softmax"

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; ``GLMHAConfig(**value)`` restores them.

        Fields that came later are left out where they say nothing: earlier versions can read such a file.
        """
        later = {field.name: field.default for field in fields(self) if field.name in _LATER_FIELDS}
        return {name: value for name, value in asdict(self).items() if later.get(name, ...) != value}

    @property
    def compact(self) -> bool:
        """The softmax runs over the generated keys."""
        return self.attention == "compact"

    @property
    def map_only(self) -> bool:
        """Only the attention map is made; whoever uses it has values and an output projection."""
        return self.out_channels == 0

    @property
    def value_width(self) -> int:
        """Channels that values are generated in."""
        return 0 if self.map_only else self.heads * self.rank_v

    @property
    def pooled_channels(self) -> int:
        """Channels of all inputs, which the guide sees."""
        return self.channels + (self.query_channels or 0)

    @property
    def padding(self) -> int:
        """Zeros on each side, with which the depthwise part keeps the size of maps."""
        return self.dilation * (self.kernel_size // 2)

    @property
    def key_gates(self) -> int:
        """Gates on keys; none where they would cancel in the normalisation of keys used as they are."""
        return self.heads * self.rank_k if self.compact or self.rank_k < self.head_channels else 0

    @property
    def full(self) -> bool:
        """Nothing is approximated: the layer computes what the CSA layer did."""
        ranks = (self.rank_q, self.rank_k, self.rank_v)
        return all(rank == self.head_channels for rank in ranks) and self.rank_pos is None

    @property
    def route(self) -> str:
        """How the layer computes, in words, for reports."""
        c = self.head_channels

        def size(rank: int) -> str:
            return "full" if rank == c else f"rank {rank}"

        routes = {
            "maps": f"logits from maps ({size(self.rank_q)} queries, {size(self.rank_k)} keys)",
            "gram": "logits from the input's Gram matrix (full)",
            "subspace": f"logits from a projection's Gram matrix ({size(self.rank_k)})",
            "modes": "static and guided logits",
        }
        branch = "" if self.rank_pos is None else f", branch values {size(self.rank_pos)}"
        if self.map_only:
            return f"{routes[self.logits]}, the rest as it was"
        second = "" if self.query_channels is None else ", queries from an input of their own"
        return f"{routes[self.logits]}, values {size(self.rank_v)}{branch}{second}"
