"""Waiting for another process without a clock: on a busy machine everything takes as long as it takes."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(happened: Callable[[], bool], alive: Callable[[], bool], say: Callable[[], str] = str) -> None:
    """Wait for what a process is to do, for as long as it lives; ``say`` tells more should it end before."""
    while not happened():
        if not alive():
            assert happened(), say()  # or it did it just before its end
            return
        time.sleep(0.02)
