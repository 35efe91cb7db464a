"""Stopping at the end of a step when asked to by Ctrl-C or SIGTERM."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """While it is open, Ctrl-C and SIGTERM are only noted; Ctrl-C after that interrupts at once.

    SIGTERM never does: a cluster's and a launcher's may both arrive, milliseconds apart.

    Attributes:
        made: there was one.
    """

    def __init__(self) -> None:
        self.made = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        with contextlib.suppress(ValueError):  # not in the main thread: signals are someone else's
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.made and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.made = True
