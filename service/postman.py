"""
Sends what lies in the outbox, at least once and signed, and tries again for a day what could not be delivered.

Any number of postmen may share an outbox: what one has taken is nobody else's until its lease is over, so whatever a
killed one had in its hands is sent by another.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import anyio
import anyio.to_thread
import httpx2

from search.errors import StillhouseError
from service import signing
from service.egress import SECONDS, Answer, Egress, Forbidden
from service.store.outbox import AT_ONCE
from service.store.ports import Outbox
from service.store.values import Letter
from service.wire import seconds_asked

logger = logging.getLogger("stillhouse.webhooks")

HANDS = 32
"""Attempts under way in one postman."""
LEASE_SECONDS = SECONDS + 25.0
"""For one attempt and what is told of it; after that it counts as never made."""
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 4 * 3600.0
PATIENCE = 24 * 3600.0
"""Seconds after which a delivery is given up."""
KEPT_SECONDS = 30 * 86_400.0
"""That long it can be seen, and replayed, what has become of a delivery."""
_TIDY_SECONDS = 3600.0
_GONE = 410
_AGENT = "Stillhouse-Webhooks/1"


class Postman:
    """Sends until it is told to stop. `egress` makes the way out, in the event loop that it belongs to."""

    def __init__(
        self,
        outbox: Outbox,
        egress: Callable[[], Egress],
        *,
        lease_seconds: float = LEASE_SECONDS,
        poll_seconds: float = 1.0,
    ) -> None:
        self._outbox, self._egress, self._lease, self._poll = outbox, egress, lease_seconds, poll_seconds
        self._under_way = Counter[str]()
        self._ended = anyio.Event()
        self._next_tidy = 0.0

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set and what is under way has ended."""
        anyio.run(self._run, stop)

    async def _run(self, stop: threading.Event) -> None:
        egress = self._egress()
        try:
            async with anyio.create_task_group() as group:
                while not stop.is_set():
                    await self._tidy()
                    letters = await self._take()
                    for letter in letters:
                        self._under_way[letter.webhook_id] += 1
                        group.start_soon(self._carry, egress, letter)
                    if not letters:
                        with anyio.move_on_after(self._poll):
                            await self._ended.wait()
        finally:
            await egress.close()

    async def _tidy(self) -> None:
        """Now and then takes out what is old, a part at a time so that letters do not wait for it."""
        if time.monotonic() < self._next_tidy:
            return
        try:
            more = await anyio.to_thread.run_sync(self._outbox.forget, KEPT_SECONDS)
        except StillhouseError as error:
            logger.warning("old deliveries could not be taken out, trying again later: %s", error)
            more = False
        if not more:
            self._next_tidy = time.monotonic() + _TIDY_SECONDS

    async def _take(self) -> Sequence[Letter]:
        self._ended = anyio.Event()
        free = HANDS - self._under_way.total()
        busy = [webhook_id for webhook_id, count in self._under_way.items() if count >= AT_ONCE]
        try:
            take = partial(self._outbox.take, free, lease_seconds=self._lease, busy=busy)
            return await anyio.to_thread.run_sync(take) if free else []
        except StillhouseError as error:
            logger.warning("the outbox cannot be read, trying again: %s", error)
            return []

    async def _carry(self, egress: Egress, letter: Letter) -> None:
        try:
            tell = await self._attempt(egress, letter)
            await anyio.to_thread.run_sync(tell)
        except StillhouseError as error:
            logger.warning("what became of %s is not on record, so it will be sent again: %s", letter.id, error)
        except Exception:
            logger.exception("an attempt at %s failed in a way that nobody thought of", letter.id)
        finally:
            self._under_way[letter.webhook_id] -= 1
            self._under_way += Counter()  # forgets those at 0
            self._ended.set()

    async def _attempt(self, egress: Egress, letter: Letter) -> Callable[[], None]:
        """Sends it, and gives what is to be told of that."""
        if not letter.wanted:
            return lambda: self._outbox.give_up(letter, None, "the webhook was deleted or disabled")
        body = letter.body.encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": _AGENT,
            **signing.headers_of(letter.id, int(time.time()), body, letter.secret),
        }
        answer: Answer | None = None
        try:
            answer = await egress.post(letter.url, body, headers)
            error = f"the receiver answered {answer.status}"
        except Forbidden as forbidden:
            error = forbidden.message
        except TimeoutError:
            error = f"the receiver did not answer within {SECONDS:g} s"
        except (httpx2.TransportError, OSError) as broken:
            error = f"the connection failed ({type(broken).__name__})"
        if answer is not None and 200 <= answer.status < 300:
            status = answer.status
            return lambda: self._outbox.delivered(letter, status)
        if answer is not None and answer.status == _GONE:
            logger.warning("%s is disabled: its receiver is gone for good (%d)", letter.webhook_id, _GONE)
            return lambda: self._outbox.disable(letter, _GONE, error)
        status_or_none = None if answer is None else answer.status
        if letter.waited_seconds >= PATIENCE:
            logger.warning("%s is given up after %d attempts: %s", letter.id, letter.attempt, error)
            return lambda: self._outbox.give_up(letter, status_or_none, error)
        asked = None if answer is None else seconds_asked(answer.headers.get("retry-after", ""))
        again = pause(letter.waited_seconds, asked)
        return lambda: self._outbox.failed(letter, status_or_none, error, again_seconds=again)


def pause(waited_seconds: float, asked_seconds: float | None = None) -> float:
    """
    Seconds until the next attempt at what has been waiting for so long: as long again, give or take a quarter, so that
    attempts come ever less often and those of many deliveries spread. What the receiver asks for in Retry-After is
    waited for too. The last attempt is made when patience ends.
    """
    usual = min(max(waited_seconds, FIRST_PAUSE), LONGEST_PAUSE) * random.uniform(0.75, 1.25)
    wanted = max(usual, min(asked_seconds or 0.0, LONGEST_PAUSE))
    return min(wanted, max(PATIENCE - waited_seconds, FIRST_PAUSE))
