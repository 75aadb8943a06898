"""Keeps a claim alive while its driver works, and tells the driver when to stop."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from types import TracebackType

from search.errors import StaleClaim, StillhouseError
from workers.ports import Claim, Ledger, Wish

logger = logging.getLogger("stillhouse.heartbeat")


class Heartbeat:
    """
    Renews the lease from a thread of its own. A context manager, and the `Watch` of the sessions.

    `lost` is called when the lease has gone to another driver, or when nothing has moved for `stall_seconds`: Ray can
    lose its only node and hang without a word. It must not return to the work, so programs leave the process there.
    """

    def __init__(
        self,
        ledger: Ledger,
        claim: Claim,
        *,
        lease_seconds: float,
        stall_seconds: float,
        lost: Callable[[str], None],
    ) -> None:
        self._ledger, self._claim, self._lost = ledger, claim, lost
        self._lease, self._stall = lease_seconds, stall_seconds
        self._moved = self._renewed = time.monotonic()
        self._wish, self._over = Wish.GO_ON, threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def stopping(self) -> bool:
        return self._wish is not Wish.GO_ON

    def wish(self) -> Wish:
        """What the user wanted when the work was told to stop; a pause may have become a cancellation since."""
        return self._wish

    def alive(self) -> None:
        self._moved = time.monotonic()

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(self._lease / 6):
            now = time.monotonic()
            if now - self._moved > self._stall:
                self._lost(f"nothing has moved for {self._stall:.0f} s")
            try:
                wish = self._ledger.renew(self._claim, self._lease)
                if wish is not Wish.GO_ON:  # whoever lets a job go on again lets it be claimed again: work has stopped
                    self._wish = wish
                self._renewed = now
            except StaleClaim:
                self._lost("another driver owns the job now")
            except StillhouseError as error:
                # The store may be back before the lease runs out; until then nobody else can claim the job.
                logger.warning("could not renew the lease of %s: %s", self._claim.job_id, error)
                if now - self._renewed > self._lease:
                    self._lost("the lease ran out while the record could not be reached")
