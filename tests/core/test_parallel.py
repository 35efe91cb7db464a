"""Work in threads: the same results, errors and interrupts as without."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from csa2glmha.core.parallel import in_threads


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_all_is_done_and_each_operation_has_one_thread(threads: int) -> None:
    seen: dict[int, tuple[int, bool, str]] = {}

    def work(item: int) -> Iterator[None]:
        seen[item] = torch.get_num_threads(), torch.is_grad_enabled(), threading.current_thread().name
        yield

    in_threads(work, range(20), what="working", unit="item")
    assert sorted(seen) == list(range(20))
    assert {each[:2] for each in seen.values()} == {(1, False)}
    assert len({name for *_, name in seen.values()}) <= threads
    assert torch.get_num_threads() == threads and torch.is_grad_enabled()


def test_several_are_worked_on_at_a_time() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    meet = threading.Barrier(2)

    def work(item: int) -> Iterator[None]:
        meet.wait(60)  # for another one, which must be running
        yield

    try:
        in_threads(work, range(4), what="meeting", unit="item")
    finally:
        torch.set_num_threads(before)


def test_the_first_error_ends_what_runs_at_its_next_yield(threads: int) -> None:
    begun: list[int] = []
    failed = threading.Event()

    def work(item: int) -> Iterator[None]:
        begun.append(item)
        if item == 0:
            failed.set()
            raise ValueError("no such thing")
        failed.wait(60)
        while True:  # for ever, if nothing ends it
            yield

    with pytest.raises(ValueError, match="no such thing"):
        in_threads(work, range(50), what="failing", unit="item")
    assert len(begun) < 50
    assert torch.get_num_threads() == threads
