"""JSON as the standard has it, which knows neither NaN nor Infinity. All JSON that we write comes from here.

A figure that is not known, NaN among them, is null. An infinite one, such as the PSNR of equal outputs, is
the text "inf" or "-inf".
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def json_number(value: float) -> float | str | None:
    """A figure as strict JSON holds it: "inf" and "-inf" for infinities, None for NaN."""
    if math.isnan(value):
        return None
    return str(value) if math.isinf(value) else value


def json_values(value: Any) -> Any:
    """Nested lists and mappings, every figure in them as :func:`json_number` gives it."""
    if isinstance(value, Mapping):
        return {key: json_values(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_values(each) for each in value]
    return json_number(value) if isinstance(value, float) else value


def dumps(
    value: Any,
    *,
    indent: int | None = None,
    sort_keys: bool = False,
    ensure_ascii: bool = True,
    separators: tuple[str, str] | None = None,
) -> str:
    """JSON text of nested values; the arguments are those of :func:`json.dumps`.

    >>> dumps({"psnr": float("inf"), "ssim": float("nan")})
    '{"psnr": "inf", "ssim": null}'
    """
    return json.dumps(
        json_values(value),
        indent=indent,
        sort_keys=sort_keys,
        ensure_ascii=ensure_ascii,
        separators=separators,
        allow_nan=False,
    )


def read_number(value: Any) -> float | None:
    """The figure that :func:`json_number` gave; None for what is no figure."""
    if value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return None
    return float(value)
