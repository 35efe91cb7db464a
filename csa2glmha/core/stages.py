"""The stages of a long command: which of how many has begun, and how long each took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from csa2glmha.core.progress import say

#: What a conversion does, in order: the names of stages in report.json, and what the user is told.
CONVERSION = {
    "ranks": "choosing ranks",
    "initialise": "statistics and initialisation",
    "widths": "feed-forward widths",
    "refit": "refit of output projections",
    "distill": "distillation",
    "evaluate": "evaluation",
    "baselines": "other methods",
    "export": "ONNX export",
    "runtimes": "ONNX files for further runtimes",
    "latency": "timing",
}


class Stages:
    """Says which stage begins, and adds up its seconds.

    Args:
        names: of the stages that are to come, out of :data:`CONVERSION`, in order.
        seconds: where those of stages that end are added; None: to a new mapping.
    """

    def __init__(self, names: Sequence[str], seconds: dict[str, float] | None = None) -> None:
        self._names = tuple(names)
        self.seconds = {} if seconds is None else seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """One stage."""
        number = self._names.index(name) + 1
        say(f"[{number}/{len(self._names)}] {CONVERSION[name]}")
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started
