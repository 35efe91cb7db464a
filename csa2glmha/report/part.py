"""What all parts of report.json share: they are checked, do not change, and know what is left out.

A part that was not measured is left out of the file: fields that are None unless given. Of a part that is
there, a figure that is not known is null: fields without a default. Infinite figures are written as
:mod:`csa2glmha.core.strict_json` says.
"""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from csa2glmha.core.strict_json import json_values, read_number


def _read(value: object) -> object:
    if value in ("inf", "-inf") or (isinstance(value, float) and math.isnan(value)):
        return read_number(value)
    return value


#: A figure that may be infinite, or None where it is not known; NaN is not known either.
Figure = Annotated[Annotated[float, Field(allow_inf_nan=True)] | None, BeforeValidator(_read)]
Count = int | float


class Part(BaseModel):
    """A part of a report; it does not change once it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    @model_serializer(mode="wrap")
    def _without_missing_parts(self, handler: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in handler(self).items()
            if value is not None or fields[name].is_required()
        }

    def to_json(self) -> dict[str, Any]:
        """The part as strict JSON values."""
        values: dict[str, Any] = json_values(self.model_dump(by_alias=True))
        return values
