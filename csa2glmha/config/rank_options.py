"""Ranks as a user asks for them: numbers, shares of energy, or a budget that they are searched for within."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, StrictFloat, StrictInt

from csa2glmha.config.affects import Affects, Options
from csa2glmha.core.errors import UsageError

if TYPE_CHECKING:
    from csa2glmha.config.budget import Budget
    from csa2glmha.config.ranks import Ranks

#: A share of energy, where a rank may be given as one.
Share = Annotated[StrictFloat, Field(gt=0, lt=1)]
#: More than any network has channels: so large that no arithmetic with it overflows, either.
Rank = Annotated[StrictInt, Field(le=1_000_000)]


class RankOptions(Options):
    """The ranks, or the budget of a search for them, and the form of the attention."""

    rank: Annotated[Rank | Share | str, Affects.WEIGHTS] = Field(
        8,
        description="Rank per head of keys and values: a number; a share of each layer's energy to keep, "
        "such as 0.99; full; or auto, which takes a budget.",
    )
    macs: Annotated[float | str | None, Affects.WEIGHTS] = Field(
        None, description="Budget of --rank auto: a share of the teacher's MACs such as 0.75, or 110G."
    )
    params: Annotated[float | str | None, Affects.WEIGHTS] = Field(
        None, description="Budget of --rank auto: a share of its parameters, or 20M."
    )
    max_drop: Annotated[float | None, Affects.WEIGHTS] = Field(
        None,
        gt=0,
        le=100,
        description="Budget of --rank auto: dB of PSNR to the ground truth, before distillation.",
    )
    latency: Annotated[float | None, Affects.WEIGHTS] = Field(
        None,
        gt=0,
        le=10,
        description="Budget of --rank auto: a share of the teacher's time in ONNX Runtime.",
    )
    rank_q: Annotated[Rank | str | None, Affects.WEIGHTS] = Field(
        None, description="Rank of queries; full unless given."
    )
    rank_k: Annotated[Rank | Share | str | None, Affects.WEIGHTS] = Field(
        None, description="Rank of keys, instead of --rank; 0 leaves out queries and keys."
    )
    rank_v: Annotated[Rank | Share | str | None, Affects.WEIGHTS] = Field(
        None, description="Rank of values, instead of --rank."
    )
    rank_pos: Annotated[Rank | str | None, Affects.WEIGHTS] = Field(
        None,
        description="Rank of the values that a branch beside the attention takes, such as a positional "
        "embedding, where there is one; full.",
    )
    attention: Annotated[Literal["expanded", "compact"], Affects.WEIGHTS] = Field(
        "expanded", description="expanded: softmax over c x c logits; compact: over r keys, as in the paper."
    )

    @property
    def ranks(self) -> Ranks:
        """The ranks per head; full where they are to be searched for, or a share of energy is given.

        Raises:
            UsageError: one is not a rank.
        """
        from csa2glmha.config.ranks import Ranks  # not at the top: --help need not wait for PyTorch

        def fixed(value: float | str | None, flag: str) -> int | str | None:
            measured = _share(value, flag) is not None or (flag == "--rank" and self.automatic)
            return "full" if measured or isinstance(value, float) else value

        rank = fixed(self.rank, "--rank")
        rank_k, rank_v = fixed(self.rank_k, "--rank-k"), fixed(self.rank_v, "--rank-v")
        return Ranks.parse(rank, self.rank_q, rank_k, rank_v, self.rank_pos)

    @property
    def shares(self) -> tuple[float | None, float | None]:
        """The shares of energy that keys and values are to keep; None where a rank is given."""
        base = _share(self.rank, "--rank")
        keys = base if self.rank_k is None else _share(self.rank_k, "--rank-k")
        values = base if self.rank_v is None else _share(self.rank_v, "--rank-v")
        return keys, values

    @property
    def automatic(self) -> bool:
        """Ranks are to be searched for."""
        return isinstance(self.rank, str) and self.rank.strip().lower() == "auto"

    @property
    def measured(self) -> bool:
        """Ranks follow from measurements on the teacher."""
        return self.automatic or self.shares != (None, None)

    def ranks_in_words(self) -> str:
        """The ranks, or what they are to follow from."""
        if self.automatic:
            return f"auto, {self.budget}"
        kept = [
            f"{name} {share:g} of the energy"
            for name, share in zip("kv", self.shares, strict=True)
            if share is not None
        ]
        return ", ".join([str(self.ranks), *kept])

    @property
    def budget(self) -> Budget | None:
        """What a search for ranks must keep to; None: there is none to make.

        Raises:
            UsageError: more or less than one budget for a search, or one without a search.
        """
        from csa2glmha.config.budget import LATENCY, MAX_DROP, Budget, parse_amount

        found = [
            parse_amount(value, kind)
            for kind, value in (("macs", self.macs), ("params", self.params))
            if value is not None
        ]
        if self.max_drop is not None:
            found.append(Budget(MAX_DROP, self.max_drop))
        if self.latency is not None:
            found.append(Budget(LATENCY, self.latency))
        if not self.automatic:
            if found:
                raise UsageError(f"{found[0]}: is a budget of --rank auto; add that, or leave it out")
            return None
        if len(found) != 1:
            given = " and ".join(map(str, found)) or "none"
            raise UsageError(
                f"--rank auto: takes one of --macs, --params, --latency and --max-drop, not {given}"
            )
        return found[0]

    def check_ranks(self) -> None:
        """Raise UsageError for ranks, budgets and forms that exclude or miss each other."""
        _ = self.budget
        if self.measured and self.attention != "expanded":
            raise UsageError(
                "--attention compact: ranks are chosen for expanded attention; leave it out, or give a whole "
                "number as --rank"
            )
        if not self.automatic:
            _ = self.ranks
            return
        ranks = {"q": self.rank_q, "k": self.rank_k, "v": self.rank_v, "pos": self.rank_pos}
        for name, rank in ranks.items():
            if rank is not None:
                raise UsageError(f"--rank-{name} {rank}: --rank auto chooses all ranks; leave it out")


def _share(value: float | str | None, flag: str) -> float | None:
    """A share of energy; None where the value is something else.

    Raises:
        UsageError: a number with a fraction that is no share.
    """
    if isinstance(value, int) or value is None:
        return None
    try:
        share = float(value)
    except ValueError:
        return None
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
        return None
    if not 0 < share < 1:
        raise UsageError(
            f"{flag} {value}: neither a rank nor a share of energy; give a whole number such as 8, or a "
            "share between 0 and 1 such as 0.99"
        )
    return share
