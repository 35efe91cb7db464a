"""How the student begins, beside the ranks of its attention."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from csa2glmha.config.affects import Affects, Options


def _share_or_full(value: Any) -> Any:
    """A number between 0 and 1, "full", or None: it is not given."""
    if value is None:
        return None
    if isinstance(value, str) and value.strip().lower() == "full":
        return "full"
    try:
        share = None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        share = None
    if share is None or not 0 < share <= 1:
        raise PydanticCustomError("share", "give a share between 0 and 1 such as 0.75, or full")
    return share


class InitialOptions(Options):
    """What else is made smaller before the distillation."""

    ffn: Annotated[float | Literal["full"] | None, BeforeValidator(_share_or_full), Affects.WEIGHTS] = Field(
        None,
        description="Share of the hidden channels of every feed-forward network to keep, such as 0.75, in "
        "whole blocks of 8; or full. Full unless given; --rank auto chooses it unless given.",
    )

    refit: Annotated[bool, Affects.WEIGHTS] = Field(
        True,
        description="Leave output projections as they are initialised, not refitted to the teacher's sums.",
    )

    @property
    def ffn_share(self) -> float:
        """The share of hidden channels that feed-forward networks keep; 1: all of them."""
        return self.ffn if isinstance(self.ffn, float) else 1.0
