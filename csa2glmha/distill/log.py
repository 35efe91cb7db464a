"""A record of the training: JSON lines in a file, and TensorBoard if wanted."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from csa2glmha.core.errors import UsageError
from csa2glmha.core.files import open_own
from csa2glmha.core.progress import say
from csa2glmha.core.strict_json import dumps

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

#: Steps between entries; evaluations have entries of their own.
STEPS_PER_ENTRY = 10


def check_tensorboard() -> None:
    """Raise UsageError if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        raise UsageError(
            "--tensorboard: the tensorboard package is not installed; pip install csa2glmha[tensorboard], "
            "or leave it out: distill.jsonl has the same figures"
        ) from None


class TrainingLog:
    """Appends to a file of JSON lines while it is open.

    Every line has "event" ("start", "step", "evaluation", "state", "stage", "end"), "time" (seconds since
    1970) and figures by name. What was written before a resume stays: of a step that is there twice, the
    later line counts. A disk that is full ends the log, not the training.

    Args:
        path: of the file, whose folder exists; None keeps no record.
        tensorboard: folder for TensorBoard, or None.
        append: go on with what is there; otherwise it is replaced.
    """

    def __init__(
        self, path: Path | None = None, tensorboard: Path | None = None, append: bool = False
    ) -> None:
        self.path, self._tensorboard, self._append = path, tensorboard, append
        self._file: Any = None
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> TrainingLog:
        if self.path is None:
            return self
        try:
            # A line that a crash cut off must not spoil the next one.
            torn = self._append and self.path.is_file() and not _ends_a_line(self.path)
            self._file = open_own(self.path, self._append)
            if torn:
                self._file.write("\n")
        except OSError as error:
            self._give_up(error)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, once more
                self._file.close()
        if self._writer is not None:
            self._writer.close()

    def write(self, event: str, **values: Any) -> None:
        """Add a line."""
        if self._file is None:
            return
        try:
            self._file.write(dumps({"event": event, "time": round(time.time(), 3), **values}) + "\n")
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def plot(self, step: int, **values: float) -> None:
        """Add points to TensorBoard's curves, if it is wanted."""
        if self._tensorboard is None:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                # Points beyond the step that is resumed from are of steps that are taken again.
                self._writer = SummaryWriter(str(self._tensorboard), purge_step=step)
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            say(f"cannot write {self._tensorboard}: {error.strerror or error}; training goes on without it")
            self._tensorboard = None

    def _give_up(self, error: OSError) -> None:
        self._file = None
        say(f"cannot write {self.path}: {error.strerror or error}; training goes on without that log")


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"\n", b"")
