"""Memory and threads that Linux's libraries keep for themselves, given back while others need them."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

import psutil

#: glibc's names, in malloc.h: heaps at most, and the size from which on memory is not from a heap.
_ARENA_MAX, _MMAP_THRESHOLD = -8, -3
#: What is larger goes back to the system as soon as it is freed. Of smaller tensors that would take time.
_LARGE = 8 * 2**20
#: A heap is searched for what can be given back whenever the process has grown by this much.
_WORTH_IT = 128 * 2**20
#: OpenMP's name for ending threads, which come again when they are needed (omp_pause_soft).
_SOFTLY = 1


def _library(function: str) -> ctypes.CDLL | None:
    """What has the function, if anything does: glibc on Linux, GNU's OpenMP that PyTorch brings there."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if hasattr(library, function) else None


@dataclass
class _Held:
    """The least memory that this process had since it last gave some back."""

    least: int = sys.maxsize


_HELD = _Held()


def share_heap() -> None:
    """Let new threads take memory from one heap, not each from its own, and large tensors from none.

    What a thread has freed is kept for that thread otherwise: a run with --memory 4 came to 9.3 GB. In one
    heap what is freed leaves holes, and the next tensors are too large for them: there it came to 5.8 GB.
    """
    if (library := _library("mallopt")) is not None:
        library.mallopt(_ARENA_MAX, 1)
        library.mallopt(_MMAP_THRESHOLD, _LARGE)


def give_back_memory() -> None:
    """Give what was freed between other things back to the system, where it may be much."""
    if (library := _library("malloc_trim")) is None:
        return
    held = psutil.Process().memory_info().rss
    if held > _HELD.least + _WORTH_IT:
        library.malloc_trim(0)
        held = _HELD.least = psutil.Process().memory_info().rss
    _HELD.least = min(_HELD.least, held)


def end_helpers() -> None:
    """End the threads that help this one to compute: each thread that computes has its own.

    Of a hundred tiles that wait on a machine of 64 cores they would be thousands.
    """
    if (library := _library("omp_pause_resource_all")) is not None:
        library.omp_pause_resource_all(_SOFTLY)
