"""Timing calls: enough repeats, in bursts that take turns, so that a busy machine slows all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from search.part import Part

Statistic = Literal["median", "mean", "min", "p90", "p95", "p99"]
Samples = NDArray[np.int64]

_LEAST_SAMPLES = 20
_LEAST_SECONDS = 0.3
_BURST_SECONDS = 0.03
_BURST_SAMPLES = 3
_WARM_CALLS = 2
"""Calls before every burst that are not counted: the caches still hold what ran before."""
_PATIENCE_SECONDS = 20.0
"""For each of the things timed; a slow one is then content with one burst."""


class Reading(Part):
    """One measured latency. `nanoseconds` is the statistic asked for, of `samples` calls with one batch each."""

    nanoseconds: int
    spread: int
    """Between the quartiles, in nanoseconds: half of all calls lay so close together."""
    samples: int
    environment: Mapping[str, str | int]
    """Where it was measured: see `search.latency.machine`."""


class Comparison(Part):
    """
    Two networks measured in turns. `ratio` is the first's time over the second's: the median over all turns or, where
    the statistic is `min`, the least time of all over the least time of all.
    """

    first: Reading
    second: Reading
    ratio: float
    low: float
    high: float
    """`ratio` lies from `low` to `high`, as that of half of all turns does."""


def bursts(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float = _LEAST_SECONDS,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[list[Samples]]:
    """
    Nanoseconds of repeated calls, `[call][turn][samples]`: the calls take turns, with a burst of samples each.

    Every call gets as many turns, and at the end at least 20 samples and `seconds` of them, unless that takes too long.
    """
    sizes = [_burst_size(call, clock) for call in calls]
    found: list[list[Samples]] = [[] for _ in calls]
    collecting = gc.isenabled()
    gc.disable()  # a collection in the middle of a call would be counted
    began = clock()
    try:
        while True:
            for turns, call, size in zip(found, calls, sizes, strict=True):
                turns.append(_burst(call, size, clock))
            late = clock() - began > _PATIENCE_SECONDS * 1e9 * len(calls)
            if late or all(_enough(turns, seconds) for turns in found):
                return found
    finally:
        if collecting:
            gc.enable()


def reading(turns: Sequence[Samples], statistic: Statistic, environment: Mapping[str, str | int]) -> Reading:
    samples = np.concatenate(turns)
    low, high = np.quantile(samples, (0.25, 0.75))
    value = max(1, round(value_of(samples, statistic)))
    return Reading(nanoseconds=value, spread=round(high - low), samples=len(samples), environment=environment)


def comparison(
    first: Sequence[Samples], second: Sequence[Samples], statistic: Statistic, environment: Mapping[str, str | int]
) -> Comparison:
    """Of the turns that two calls took in one `bursts`."""
    ratios = [value_of(one, statistic) / value_of(other, statistic) for one, other in zip(first, second, strict=True)]
    low, ratio, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    if statistic == "min":  # of a turn it may be disturbed, as all its calls were
        ratio = value_of(np.concatenate(first), statistic) / value_of(np.concatenate(second), statistic)
    return Comparison(
        first=reading(first, statistic, environment),
        second=reading(second, statistic, environment),
        ratio=float(ratio),
        low=float(min(low, ratio)),
        high=float(max(high, ratio)),
    )


def value_of(samples: Samples, statistic: Statistic) -> float:
    match statistic:
        case "mean":
            return float(samples.mean())
        case "min":
            return float(samples.min())
        case "median":
            return float(np.median(samples))
        case percentile:
            return float(np.quantile(samples, int(percentile.removeprefix("p")) / 100))


def _burst_size(call: Callable[[], object], clock: Callable[[], int]) -> int:
    for _ in range(_WARM_CALLS):  # the first call of all allocates, chooses algorithms, wakes threads
        call()
    quickest = max(1, int(_burst(call, _BURST_SAMPLES, clock).min()))
    return max(_BURST_SAMPLES, min(1000, round(_BURST_SECONDS * 1e9 / quickest)))


def _burst(call: Callable[[], object], size: int, clock: Callable[[], int]) -> Samples:
    for _ in range(_WARM_CALLS):
        call()
    samples = np.empty(size, dtype=np.int64)
    for at in range(size):
        began = clock()
        call()
        samples[at] = clock() - began
    return samples


def _enough(turns: Sequence[Samples], seconds: float) -> bool:
    samples = sum(len(turn) for turn in turns)
    return samples >= _LEAST_SAMPLES and sum(int(turn.sum()) for turn in turns) >= seconds * 1e9
