"""Hooks on modules, for as long as they are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch.utils.hooks import RemovableHandle


class CallArguments(NamedTuple):
    """What a module was called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@contextmanager
def removed_after(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Take hooks off again at the end, come what may.

    Example:
        >>> from torch import nn
        >>> layer = nn.Identity()
        >>> with removed_after([layer.register_forward_hook(lambda *_: None)]):
        ...     len(layer._forward_hooks)
        1
        >>> len(layer._forward_hooks)
        0
    """
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
