"""The batches of a training in their order, made ahead by worker processes if there are any."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch.utils.data import DataLoader, Dataset

from csa2glmha.data.batches import Batch, TrainingBatches
from csa2glmha.distill.processes import Processes
from csa2glmha.distill.settings import DistillSettings


@dataclass(frozen=True)
class _Parts(Dataset[Batch]):
    """Every step's parts of one process, numbered through."""

    batches: TrainingBatches
    size: int
    accumulate: int
    processes: int
    process: int

    def __getitem__(self, number: int) -> Batch:
        # A step's samples follow each other over parts, then processes: any division of the same number of
        # samples sees the same ones.
        step = number // self.accumulate
        first = (number * self.processes + self.process) * self.size
        return self.batches.batch(step, first, self.size)


def feed(
    batches: TrainingBatches, settings: DistillSettings, processes: Processes, step: int
) -> Iterator[list[Batch]]:
    """The parts of every step from number ``step`` on, without end, for this process."""
    parts = _Parts(batches, settings.batch, settings.accumulate, processes.count, processes.index)
    loader = DataLoader(
        parts,
        batch_size=None,
        sampler=count(step * settings.accumulate),  # endless
        num_workers=settings.workers,
        worker_init_fn=_leave_signals_to_the_trainer,
    )
    following = iter(loader)
    while True:
        yield [next(following) for _ in range(settings.accumulate)]


def _leave_signals_to_the_trainer(worker: int) -> None:
    # Ctrl-C goes to all processes of a terminal; the trainer still needs batches to finish its step.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
