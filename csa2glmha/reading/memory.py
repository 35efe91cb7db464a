"""Which tensors share memory, and which of them an operator writes to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


def memory_of(tensor: Tensor) -> int:
    """A number for the memory that a tensor lies in."""
    return int(tensor.untyped_storage()._cdata)


def overlap(one: Tensor, other: Tensor) -> bool:
    """Whether the stretches of memory that two tensors of one storage lie in have a part in common."""
    (first, end), (begin, last) = _stretch(one), _stretch(other)
    return first < last and begin < end


def _stretch(tensor: Tensor) -> tuple[int, int]:
    size = tensor.element_size()
    reach = sum((length - 1) * step for length, step in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.storage_offset()
    return int(start * size), int((start + reach + 1) * size)


def written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operator writes to."""
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (each for each in tree_leaves(given) if isinstance(each, Tensor))
