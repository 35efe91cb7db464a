"""Choosing where to compute, and how much memory there is."""

from __future__ import annotations

import contextlib
from pathlib import Path

import psutil
import torch

from csa2glmha.core.errors import UsageError

_CGROUP_LIMITS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def total_memory() -> int:
    """Bytes of memory that this machine has, or its container may use."""
    found = [int(psutil.virtual_memory().total)]
    for limit, _ in _CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text()))
    return min(found)


def free_memory() -> int:
    """Bytes of main memory that can still be had, within the limit of the container."""
    found = [int(psutil.virtual_memory().available)]
    for limit, usage in _CGROUP_LIMITS:
        # No such files outside of Linux, and "max" where there is no limit.
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text()) - int(Path(usage).read_text()))
    return max(0, min(found))


def resolve_device(name: str) -> torch.device:
    """The device for "auto", "cpu", "cuda", "cuda:N" or "mps"; "auto" takes a GPU when there is one.

    Raises:
        UsageError: unknown, or not present on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in {"cpu", "cuda", "mps"}:
        raise UsageError(f"--device {name}: unknown; give auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"--device {name}: no CUDA GPU is visible to PyTorch here; give --device auto or cpu"
        )
    if device.type == "cuda" and device.index is not None and device.index >= torch.cuda.device_count():
        raise UsageError(
            f"--device {name}: there are only {torch.cuda.device_count()} CUDA GPUs, counted from cuda:0"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            f"--device {name}: no Apple GPU is visible to PyTorch here; give --device auto or cpu"
        )
    return device
