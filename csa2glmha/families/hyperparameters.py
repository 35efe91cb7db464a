"""What hyper-parameters may be, checked before a network is built from a file's."""

from __future__ import annotations

from collections.abc import Mapping
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
