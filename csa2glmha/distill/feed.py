"""The batches of a training in their order, made ahead by worker processes if there are any."""

from __future__ import annotations

import signal
from collections.abc import Generator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from csa2glmha.core.errors import Csa2GlmhaError
from csa2glmha.data.batches import Batch, TrainingBatches
from csa2glmha.distill.processes import Processes
from csa2glmha.distill.settings import DistillSettings

#: What a worker still gives the trainer to finish its step.
SECONDS_AFTER_SIGTERM = 20


@dataclass(frozen=True)
class _Parts(Dataset[Any]):
    """Every step's parts of one process, numbered through."""

    batches: TrainingBatches
    size: int
    accumulate: int
    processes: int
    process: int

    def __getitem__(self, number: int) -> Batch | Csa2GlmhaError:
        # A step's samples follow each other over parts, then processes: any division of the same number of
        # samples sees the same ones.
        step = number // self.accumulate
        first = (number * self.processes + self.process) * self.size
        try:
            return self.batches.batch(step, first, self.size)
        except Csa2GlmhaError as error:
            return error  # raised in a worker process it would come out wrapped in a traceback


def feed(
    batches: TrainingBatches, settings: DistillSettings, processes: Processes, step: int
) -> Generator[list[Batch]]:
    """The parts of every step from number ``step`` on, without end, for this process; close it at the end.

    Raises:
        Csa2GlmhaError: a batch cannot be made.
    """
    parts = _Parts(batches, settings.batch, settings.accumulate, processes.count, processes.index)
    loader = DataLoader(
        parts,
        batch_size=None,
        sampler=count(step * settings.accumulate),  # endless
        num_workers=settings.workers,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    following = iter(loader)
    try:
        while True:
            yield [_checked(next(following)) for _ in range(settings.accumulate)]
    finally:
        del following  # its workers end with it, now and not when Python ends: see below


def _checked(part: Batch | Csa2GlmhaError) -> Batch:
    if isinstance(part, Csa2GlmhaError):
        raise part
    return part


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Ctrl-C goes to all processes of a terminal, a launcher's SIGTERM to those of a group; the trainer still
    # needs batches to finish its step. Workers end when it does, or some time after a SIGTERM: Python sends
    # one to workers left over at its end, and waits for them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(SECONDS_AFTER_SIGTERM))
    torch.set_num_threads(1)
