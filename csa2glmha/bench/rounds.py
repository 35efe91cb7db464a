"""Timing models in turns until it is known how their times relate.

A machine that others use as well speeds up and slows down, all the time and at all time scales. So the
models take turns, in a random order each round, and the ratio of two is the median over the rounds of the
ratio within a round: what lasts longer than a round cancels, and what is shorter averages out.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

#: Standard deviations of the normal distribution around 95 % of it.
_Z = 1.96


@dataclass(frozen=True)
class Latency:
    """Times of repeated runs, in milliseconds.

    Attributes:
        median_ms: the median.
        low_ms, high_ms: the lower and the upper quartile.
        runs: number of timed runs.
        samples_ms: the time of each run, in order.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    samples_ms: tuple[float, ...]

    @classmethod
    def of(cls, samples_ms: Sequence[float]) -> Latency:
        """The summary of at least one time."""
        low, median, high = np.percentile(samples_ms, (25, 50, 75))
        return cls(float(median), float(low), float(high), len(samples_ms), tuple(samples_ms))


@dataclass(frozen=True)
class Patience:
    """When to stop.

    Attributes:
        tolerance: half the width of each ratio's 95 % confidence interval, relative to the ratio.
        enough: rounds, from which on ratios can be known that well.
        fewest: rounds at least, whatever the time; an interval of a median needs that many.
        seconds: at most, warm-up too, once there are the fewest rounds.
        warmup: rounds before those that count; one, where that takes more than a tenth of the time.
    """

    tolerance: float = 0.01
    enough: int = 15
    fewest: int = 5
    seconds: float = 60.0
    warmup: int = 3


@dataclass(frozen=True)
class Ratio:
    """A model's time over the first one's.

    Attributes:
        median: over the rounds.
        low, high: 95 % confidence interval of the median.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ratios: Sequence[float]) -> Ratio:
        """The median of at least one value, with an interval that no distribution is assumed for."""
        ordered = sorted(ratios)
        count = len(ordered)
        # The number of values below the true median is binomial: count / 2 with this deviation.
        reach = _Z * math.sqrt(count) / 2
        low = max(0, math.floor(count / 2 - reach))
        high = min(count - 1, math.ceil(count / 2 + reach) - 1)
        return cls(statistics.median(ordered), ordered[low], ordered[max(high, low)])

    @property
    def uncertainty(self) -> float:
        """Half the interval's width, relative to the median."""
        return (self.high - self.low) / (2 * self.median)


@dataclass(frozen=True)
class Timings:
    """Times of all models, and their ratios to the first.

    Attributes:
        latencies: in the order of the models.
        ratios: likewise; the first is 1.
        converged: all ratios are known as well as was asked for.
    """

    latencies: tuple[Latency, ...]
    ratios: tuple[Ratio, ...]
    converged: bool


def time_in_turns(
    runs: Sequence[Callable[[], None]],
    patience: Patience,
    on_round: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Timings:
    """Time functions against each other.

    Args:
        runs: each runs a model once.
        patience: when to stop.
        on_round: called after each round, warm-up too.
        clock: in seconds.
    """
    samples: list[list[float]] = [[] for _ in runs]
    rounds = _rounds(runs, on_round, clock)
    with _no_garbage_collection():
        began = clock()
        for _ in range(patience.warmup):
            if sum(next(rounds)) > patience.seconds / 10:
                break
        while True:
            for sample, seconds in zip(samples, next(rounds), strict=True):
                sample.append(1000 * seconds)
            found = _settled(samples, patience, clock() - began >= patience.seconds)
            if found is not None:
                return found


def _rounds(
    runs: Sequence[Callable[[], None]], on_round: Callable[[], object], clock: Callable[[], float]
) -> Iterator[list[float]]:
    """Seconds of each function, round by round, in a new order every time."""
    order = list(range(len(runs)))
    shuffle = random.Random(0).shuffle
    while True:
        shuffle(order)
        times = [0.0] * len(runs)
        for index in order:
            start = clock()
            runs[index]()
            times[index] = clock() - start
        on_round()
        yield times


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _settled(samples: Sequence[Sequence[float]], patience: Patience, late: bool) -> Timings | None:
    """What milliseconds of so many rounds say; None: not enough yet."""
    rounds = len(samples[0])
    if rounds < (patience.fewest if late else patience.enough):
        return None
    ratios = tuple(_ratio(sample, samples[0]) for sample in samples)
    # With one model there is no ratio to wait for.
    converged = len(samples) == 1 or (
        rounds >= patience.enough and all(ratio.uncertainty <= patience.tolerance for ratio in ratios)
    )
    if not (converged or late):
        return None
    return Timings(tuple(Latency.of(sample) for sample in samples), ratios, converged)


def _ratio(times: Sequence[float], first: Sequence[float]) -> Ratio:
    return Ratio.of([own / other for own, other in zip(times, first, strict=True)])
