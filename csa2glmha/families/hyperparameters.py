"""What hyper-parameters may be, checked before a network is built from a file's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from csa2glmha.core.problems import first_problem

#: A 3x3 convolution of this many channels has 38 G weights: nothing that is stored is wider.
Width = Annotated[int, Field(ge=1, le=2**16)]
Heads = Annotated[int, Field(ge=1, le=2**16)]
Blocks = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=1, le=2**16)]


class Hyperparameters(BaseModel):
    """What all families have in common; one field for each keyword of the network's class."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @property
    def blocks(self) -> int:
        """Blocks and other modules that are built one by one."""
        raise NotImplementedError


def check_hyperparameters(
    kind: type[Hyperparameters], values: Mapping[str, Any], tensors: int
) -> dict[str, Any]:
    """The hyper-parameters of a family, if a network of them can be in a file.

    Args:
        kind: what they may be.
        values: the hyper-parameters as the file has them.
        tensors: how many the file holds; every block of a network has some.

    Raises:
        ValueError: the first problem, in one line.
        TypeError: the values are no mapping.
    """
    try:
        checked = kind(**values)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from None
    if checked.blocks > tensors:
        raise ValueError(f"{checked.blocks} blocks, but only {tensors} tensors")
    return dict(values)


def expansion_factor(hidden: Mapping[int, int]) -> float:
    """The factor with the fewest decimals that gives int(width * factor) == hidden for every level."""
    low = max(Fraction(size, width) for width, size in hidden.items())
    high = min(Fraction(size + 1, width) for width, size in hidden.items())
    for decimals in range(1, 13):
        factor = math.ceil(low * 10**decimals) / 10**decimals
        if factor < high and all(int(width * factor) == size for width, size in hidden.items()):
            return factor
    return float(low)
