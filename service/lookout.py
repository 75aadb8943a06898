"""
One look for everybody: who waits for a job to go on is woken when there is something new, and the record is asked once
a moment for all of them together, however many they are.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager

import anyio
import anyio.to_thread

from search.errors import StillhouseError, StoreUnavailable

logger = logging.getLogger("stillhouse.api")

LOOK_SECONDS = 0.25

Look = Callable[[Collection[str]], Mapping[str, int]]
"""By job the number of its latest event."""


class Watch:
    """One waiting client's eye on a job. What was seen up to number `seen` is no news."""

    def __init__(self, job_id: str, seen: int) -> None:
        self.job_id, self._seen = job_id, seen
        self._woken = anyio.Event()
        self._failure: StillhouseError | None = None

    async def news(self, seconds: float) -> None:
        """
        Returns when there are events that no earlier call has returned for, or after so many seconds, or when the
        server is about to end.

        Raises:
            StillhouseError: the record could not be looked at.
        """
        with anyio.move_on_after(seconds):
            await self._woken.wait()
        self._woken = anyio.Event()
        if self._failure is not None:
            raise self._failure

    def latest(self, seq: int) -> None:
        if seq > self._seen:
            self._seen = seq
            self.wake()

    def wake(self, failure: StillhouseError | None = None) -> None:
        self._failure = failure
        self._woken.set()


class Lookout:
    """Belongs to one event loop, in which `run` goes on for as long as the server does; `over` says that it ends."""

    def __init__(self, look: Look, over: threading.Event) -> None:
        self._look, self._over = look, over
        self._watches: set[Watch] = set()
        self._wanted = anyio.Event()

    @contextmanager
    def watching(self, job_id: str, seen: int = 0) -> Iterator[Watch]:
        watch = Watch(job_id, seen)
        self._watches.add(watch)
        self._wanted.set()
        try:
            yield watch
        finally:
            self._watches.discard(watch)

    async def run(self) -> None:
        while True:
            if not self._watches:
                self._wanted = anyio.Event()
                await self._wanted.wait()
            await self._tell()
            await anyio.sleep(LOOK_SECONDS)

    async def _tell(self) -> None:
        if self._over.is_set():
            for watch in list(self._watches):
                watch.wake()
            return
        asked = {watch.job_id for watch in self._watches}
        try:
            latest = await anyio.to_thread.run_sync(self._look, asked)
        except StillhouseError as error:
            self._fail(asked, error)
        except Exception:
            logger.exception("the jobs that are watched could not be looked at")
            self._fail(asked, StoreUnavailable("the record could not be looked at"))
        else:
            for watch in list(self._watches):
                watch.latest(latest.get(watch.job_id, 0))

    def _fail(self, asked: Collection[str], error: StillhouseError) -> None:
        for watch in list(self._watches):
            if watch.job_id in asked:
                watch.wake(error)
