"""The ranks that a user asks for."""

from __future__ import annotations

from dataclasses import dataclass

from csa2glmha.core.errors import UsageError
from csa2glmha.core.text import shortened

#: More than any network has channels.
LARGEST_RANK = 1_000_000


@dataclass(frozen=True)
class Ranks:
    """Ranks per head of queries, keys and values; None is full rank, with nothing approximated.

    Keys of rank 0 leave out queries too: what remains are static and guided logits. ``pos`` is that of the
    values which a branch beside the attention takes, such as a positional embedding, where a layer has one.
    """

    q: int | None = None
    k: int | None = None
    v: int | None = None
    pos: int | None = None

    @classmethod
    def parse(
        cls,
        rank: int | str | None,
        rank_q: int | str | None = None,
        rank_k: int | str | None = None,
        rank_v: int | str | None = None,
        rank_pos: int | str | None = None,
    ) -> Ranks:
        """Read ``--rank`` and its refinements; each a whole number above 0, "full" or None (not given).

        ``rank`` sets keys and values; queries and the branch's values stay full unless ``rank_q`` and
        ``rank_pos`` say otherwise.

        Raises:
            UsageError: not a rank.
        """
        base = parse_rank(rank, "--rank")
        return cls(
            q=parse_rank(rank_q, "--rank-q"),
            k=base if rank_k is None else parse_rank(rank_k, "--rank-k", least=0),
            v=base if rank_v is None else parse_rank(rank_v, "--rank-v"),
            pos=parse_rank(rank_pos, "--rank-pos"),
        )

    def __str__(self) -> str:
        return ", ".join(
            f"{name} {'full' if rank is None else rank}"
            for name, rank in (("q", self.q), ("k", self.k), ("v", self.v), ("pos", self.pos))
            if name != "pos" or rank is not None
        )


def parse_rank(value: int | str | None, option: str, least: int = 1) -> int | None:
    """One rank; None for "full" or nothing given.

    Raises:
        UsageError: not a whole number, or below the least that makes sense.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() == "full"):
        return None
    try:
        rank = None if isinstance(value, (bool, float)) else int(value)
    except ValueError:
        rank = None
    if rank is None or rank > LARGEST_RANK:
        raise UsageError(f"{option} {shortened(value)}: not a rank; give a whole number such as 8, or full")
    if rank < least:
        raise UsageError(
            f"{option} {shortened(value)}: a rank is at least {least} here; give a whole number such as 8, "
            "or full"
        )
    return rank
