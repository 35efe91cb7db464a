"""The same work on many things, some of them at a time."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from threading import Event
from typing import TypeVar

import torch

from csa2glmha.core.progress import manual_progress

Item = TypeVar("Item")

#: Threads at most. Python's own part of the work is done in one of them at a time: more would wait for it.
MOST = 4


def in_threads(
    work: Callable[[Item], Iterator[None]], items: Sequence[Item], *, what: str, unit: str
) -> None:
    """Do the same with each item, in as many threads as PyTorch may use, with a bar.

    For work of many small operations, which is no faster where several threads share each of them. Here each
    operation has one thread, so results are the same on any number of them. Gradients are off until the work
    turns them on.

    Args:
        work: a generator, which yields where it may be left unfinished. What it changes for one item, no
            other item may use.
        items: in no certain order.
        what, unit: of the bar.

    Raises:
        Exception: the first that ``work`` raises; all else ends at its next ``yield``, as after an interrupt.

    Example:
        >>> def square(side: int) -> Iterator[None]:
        ...     squares[side] = side * side
        ...     yield
        >>> in_threads(square, [1, 2, 3], what="squaring", unit="number")
    """
    ended = Event()

    def until_ended(item: Item) -> None:
        with torch.no_grad():  # each thread's own
            for _ in work(item):
                if ended.is_set():
                    return

    pool = ThreadPoolExecutor(max(1, min(torch.get_num_threads(), MOST)), "csa2glmha")
    with manual_progress(what=what, unit=unit, total=len(items)) as bar, _one_for_each_operation():
        try:
            # What the caller has set, such as that it is quiet, holds in each thread.
            running = [pool.submit(contextvars.copy_context().run, until_ended, item) for item in items]
            for done in as_completed(running):
                done.result()
                bar.update()
        finally:
            ended.set()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _one_for_each_operation() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
