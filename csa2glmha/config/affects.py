"""What an option affects. Every option says it; what may be used again after a change follows from that."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError


class Affects(IntEnum):
    """The first thing in a conversion that an option affects; whatever comes after it is affected, too.

    Attributes:
        MEASUREMENTS: what is measured on the teacher: which images, how they are prepared, which crops.
        WEIGHTS: the weights of the student.
        REPORT: what the report says of it.
        NOTHING: none of these: where results go, how fast they come, what is written beside them.
    """

    MEASUREMENTS = 1
    WEIGHTS = 2
    REPORT = 3
    NOTHING = 4


class Options(BaseModel):
    """Options on one concern. Each is annotated with an :class:`Affects`."""

    # Infinities and NaN would pass every range.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def affected_by(model: type[Options], name: str) -> Affects:
    """What an option affects first.

    Raises:
        TypeError: the option does not say so, or says it twice.
    """
    said = [each for each in model.model_fields[name].metadata if isinstance(each, Affects)]
    if len(said) != 1:
        raise TypeError(f"{model.__name__}.{name}: annotate it with one Affects")
    return said[0]


def options_that_affect(result: Affects, model: type[Options]) -> tuple[str, ...]:
    """The options that a result depends on, in the order of their declaration.

    Args:
        result: what may be used again where all of these options are as they were.
        model: whose options.
    """
    return tuple(name for name in model.model_fields if affected_by(model, name) <= result)


def values_that_affect(result: Affects, options: Options) -> dict[str, Any]:
    """The same with their values, as JSON has them."""
    return options.model_dump(mode="json", include=set(options_that_affect(result, type(options))))


def _without_nul(path: Path) -> Path:
    """Refuse what no system takes, and what Python would raise ValueError for somewhere else."""
    if "\0" in str(path):
        raise PydanticCustomError("path", "a path has no NUL character")
    return path


FilePath = Annotated[Path, AfterValidator(_without_nul)]
