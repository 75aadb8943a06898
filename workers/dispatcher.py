"""
Claims jobs and keeps one driver process for each.

Any number of dispatchers may work on one ledger: a lease decides who has a job. A driver is a process of its own
session that renews its own lease, so it survives the dispatcher that started it.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from search.errors import LedgerError, StillhouseError
from workers import rules
from workers.ports import Claim, JobState, Ledger, Wish

logger = logging.getLogger("stillhouse.dispatcher")

Launch = Callable[[Claim], "subprocess.Popen[bytes]"]


@dataclass
class _Running:
    claim: Claim
    process: subprocess.Popen[bytes]
    wish: Wish = Wish.GO_ON
    wished_since: float | None = None


class Dispatcher:
    """
    Keeps up to `slots` drivers going.

    A driver that ends without closing its job gives the job back at once, and the next claim goes on from the record.
    A driver that does not heed a cancellation or a pause within `grace_seconds` is killed with all its children.
    """

    def __init__(
        self,
        ledger: Ledger,
        launch: Launch,
        *,
        owner: str,
        slots: int,
        lease_seconds: float,
        grace_seconds: float = 20.0,
        poll_seconds: float = 0.5,
    ) -> None:
        self._ledger, self._launch, self._owner = ledger, launch, owner
        self._lease, self._grace, self._poll = lease_seconds, grace_seconds, poll_seconds
        self._running: list[_Running] = []
        self.slots = slots
        self.ended = {True: 0, False: 0}
        """Drivers that are gone, by whether they ended in good order."""

    @property
    def running(self) -> int:
        """Drivers that are there."""
        return len(self._running)

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. Drivers go on after that: they hold their own leases."""
        while not stop.is_set():
            try:
                self.tend()
            except StillhouseError as error:
                logger.warning("the record cannot be reached, trying again: %s", error)
            stop.wait(self._poll)

    def tend(self) -> None:
        """One round: buries dead drivers, insists on what users want, claims while there is room."""
        for running in list(self._running):
            if running.process.poll() is not None:
                self._bury(running)
            else:
                self._insist(running)
        while len(self._running) < self.slots:
            claim = self._ledger.claim(self._owner, self._lease)
            if claim is None:
                return
            self._running.append(_Running(claim, self._launch(claim)))

    def _bury(self, running: _Running) -> None:
        self._running.remove(running)
        code = running.process.returncode
        self.ended[code == 0] += 1
        _kill_group(running.process.pid)
        if code != 0:
            job = running.claim.job_id
            logger.warning("the driver of %s ended with code %s", job, code, extra={"job_id": job})
        with suppress(LedgerError):  # the driver closed the job, or someone else has claimed it
            match running.wish:
                case Wish.CANCEL:
                    self._ledger.close(running.claim, JobState.CANCELLED, rules.CANCELLED)
                case Wish.PAUSE:
                    self._ledger.rest(running.claim)
                case _:
                    self._ledger.release(running.claim)

    def _insist(self, running: _Running) -> None:
        job = self._ledger.job(running.claim.job_id)
        running.wish = rules.wish(cancel=job.cancel_requested, pause=job.pause_requested)
        if running.wish is Wish.GO_ON:
            running.wished_since = None
            return
        now = time.monotonic()
        running.wished_since = running.wished_since or now
        if now - running.wished_since > self._grace:
            logger.warning(
                "the driver of %s did not heed the %s asked for; killed",
                job.id,
                running.wish,
                extra={"job_id": job.id},
            )
            _kill_group(running.process.pid)


def _kill_group(pid: int) -> None:
    """Kills what is left of a driver's process group: a local Ray cluster outlives the driver that began it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
