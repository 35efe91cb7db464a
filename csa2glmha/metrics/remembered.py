"""Operators on the ``meta`` device, whose results follow from shapes: what came once is not computed again.

PyTorch derives the shape of most results in Python, which takes a tenth of a millisecond an operator. Blocks
of a network, and students of one search, call the same operators on the same shapes again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: Results that are kept; beyond that the oldest half is forgotten.
MOST = 20_000
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.memory_format, torch.layout)


class _Made(NamedTuple):
    """A tensor's description."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


class _Result(NamedTuple):
    made: tuple[_Made, ...]
    container: type | None
    macs: int


_results: dict[Any, _Result] = {}


def remembered(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[[], tuple[Any, int]]
) -> tuple[Any, int]:
    """An operator's output and its MACs, from ``run`` where the like has not come before.

    Args:
        func: the operator. One that gives views of its arguments, or changes them, is always run.
        args, kwargs: of it. Where a tensor has values, or an argument is of an unusual kind, it is run.
        run: runs it.
    """
    given = _key((args, tuple(kwargs.items()))) if _is_functional(func) else None
    if given is None:
        return run()
    # Operators that make a tensor of nothing take PyTorch's default type.
    key = func, given, torch.get_default_dtype()
    known = _results.get(key)
    if known is None:
        output, macs = run()
        if (known := _described(output, macs)) is not None:
            if len(_results) >= MOST:
                for old in list(_results)[: MOST // 2]:
                    del _results[old]
            _results[key] = known
        return output, macs
    tensors = [torch.empty_strided(*each[:2], dtype=each.dtype, device="meta") for each in known.made]
    return (tensors[0] if known.container is None else known.container(tensors)), known.macs


@cache
def _is_functional(func: Any) -> bool:
    schema = func._schema
    return all(each.alias_info is None for each in (*schema.arguments, *schema.returns))


def _described(output: Any, macs: int) -> _Result | None:
    """None where the output is not all tensors without values."""
    container = type(output) if type(output) in (tuple, list) else None
    tensors = [output] if container is None else list(output)
    if not tensors or not all(type(each) is Tensor and each.is_meta for each in tensors):
        return None
    made = tuple(_Made(tuple(each.shape), each.stride(), each.dtype) for each in tensors)
    return _Result(made, container, macs)


def _key(value: Any) -> Any:
    """What stands for an argument; None where nothing does. 1, 1.0 and True are equal, and not the same."""
    if isinstance(value, Tensor):
        plain = type(value) in (Tensor, torch.nn.Parameter) and value.is_meta
        return (tuple(value.shape), value.stride(), value.dtype) if plain else None
    if isinstance(value, (tuple, list)):
        parts = tuple(map(_key, value))
        return None if None in parts else (type(value), parts)
    if isinstance(value, _PLAIN):
        return type(value), value
    return None
