"""How often a key may be used: a token bucket for each, in this process."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Allowance:
    """`wait` is in whole seconds, 0 for go on. `headers` are those of draft-ietf-httpapi-ratelimit-headers."""

    wait: int
    headers: Mapping[str, str]


class Throttle:
    """
    Each key has a bucket of `burst` tokens that fills by `rate` a second; a request takes one. Threads may share it.
    Of more than `most` buckets those that are full are forgotten, which makes no difference to whose they are.

    A process counts for itself: of n replicas a key is given up to n times as much.
    """

    def __init__(
        self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic, *, most: int = 10_000
    ) -> None:
        self.rate, self._burst, self._clock, self._most = rate, burst, clock, most
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}
        self.refused = 0
        self._policy = f'"key";q={burst};w={math.ceil(burst / rate)}'

    @property
    def watched(self) -> int:
        """Keys with a bucket."""
        return len(self._buckets)

    def take(self, key: str) -> Allowance:
        with self._lock:
            moment = self._clock()
            tokens, at = self._buckets.get(key, (float(self._burst), moment))
            tokens = min(float(self._burst), tokens + (moment - at) * self.rate)
            taken = tokens >= 1
            tokens -= taken
            self.refused += not taken
            self._buckets[key] = (tokens, moment)
            if len(self._buckets) > self._most:
                self._forget(moment)
        until_next = 0 if tokens >= 1 else math.ceil((1 - tokens) / self.rate)
        headers = {"RateLimit": f'"key";r={math.floor(tokens)};t={until_next}', "RateLimit-Policy": self._policy}
        return Allowance(0 if taken else max(until_next, 1), headers)

    def _forget(self, moment: float) -> None:
        self._buckets = {
            key: (tokens, at)
            for key, (tokens, at) in self._buckets.items()
            if tokens + (moment - at) * self.rate < self._burst
        }
