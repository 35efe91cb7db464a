"""What libraries keep for themselves goes back while others need it."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other libraries do not keep what is freed"
)

#: Prints the MiB that a process has kept of tensors which are gone, while small ones between them are not.
KEPT = """
import psutil, torch
from csa2glmha.inference.system import give_back_memory, share_heap
size, count, shared, given = {size}, {count}, {shared}, {given}
if shared:
    share_heap()
else:
    torch.ones(30 << 18)  # from now on glibc keeps what is smaller than that
torch.ones(8).exp().sum()
give_back_memory()
before = psutil.Process().memory_info().rss
pairs = [[torch.ones(size << 18), torch.ones(1 << 14)] for _ in range(count)]
for pair in pairs:
    pair[0] = None
if given:
    give_back_memory()
print((psutil.Process().memory_info().rss - before) >> 20)
"""


def kept(size: int, count: int, *, shared: bool, given: bool) -> int:
    script = KEPT.format(size=size, count=count, shared=shared, given=given)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc
def test_large_tensors_are_given_back_at_once() -> None:
    assert kept(16, 12, shared=False, given=False) > 150
    assert kept(16, 12, shared=True, given=False) < 20


@glibc
def test_small_ones_are_given_back_where_they_are_many() -> None:
    assert kept(1, 200, shared=True, given=False) > 150
    assert kept(1, 200, shared=True, given=True) < 20
    assert kept(1, 60, shared=True, given=True) > 40  # not worth the time


TEAMS = """
import threading, psutil, torch
from csa2glmha.inference.threads import PausingCall, ended_together
torch.set_num_threads(5)
def work():
    torch.rand(2**20).exp_()
    call.ask("anything")
    return torch.get_num_threads()
before, calls = psutil.Process().num_threads(), []
with ended_together(calls):
    for _ in range(6):
        call = PausingCall(work)
        calls.append(call)
        call.proceed()
    print(psutil.Process().num_threads() - before)
    for call in calls:
        call.proceed("answer")
    print({call.result for call in calls})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OpenMP of other makers shares its threads")
def test_calls_that_wait_have_no_helpers() -> None:
    done = subprocess.run([sys.executable, "-c", TEAMS], capture_output=True, text=True, check=True)
    assert done.stdout == "6\n{5}\n"
