"""Puts what a driver logs on the record of its job, in batches, so that a flood of lines harms nobody."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType

from search.errors import LedgerError, StillhouseError
from workers.ports import Claim, Ledger, Level, Line

QUEUE = 2000
"""Lines that wait; those that come when it is full are counted and not kept."""
BATCH = 500
"""Lines a transaction, and so lines a second while more are coming."""
PAUSE_SECONDS = 1.0
_CLOSING_SECONDS = 5.0
_OWN = "stillhouse.logbook"


class Logbook(logging.Handler):
    """
    A handler whose lines go to `ledger.log`, by a thread of its own. A context manager, at whose end the rest is
    written as far as the record takes it.

    Whoever logs never waits: not for the record, and not while it is away. Once the claim is over, lines are dropped
    without a word, for another driver's are on record now. Tracebacks name modules' files, not where they are
    installed: a job's log is its tenant's to read, the server's folders are not.
    """

    def __init__(self, ledger: Ledger, claim: Claim, *, pause: float = PAUSE_SECONDS) -> None:
        super().__init__()
        self._ledger, self._claim, self._pause = ledger, claim, pause
        self._waiting: deque[tuple[float, Line]] = deque()
        self._dropped = 0
        self._guard, self._over = threading.Lock(), threading.Event()
        folders = sorted({str(Path(place).absolute()) for place in sys.path}, key=len, reverse=True)
        self._places = [f'File "{folder}{os.sep}' for folder in folders]
        self._thread = threading.Thread(target=self._ship, name="logbook", daemon=True)
        self.setFormatter(logging.Formatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if self._over.is_set() or record.thread == self._thread.ident:
            return  # what goes wrong with writing must not have itself written
        try:
            trial = getattr(record, "trial_id", None)
            line = Line(Level.of(record.levelno), record.name, self._told(record), trial)
        except Exception:
            self.handleError(record)
            return
        with self._guard:
            if len(self._waiting) < QUEUE:
                self._waiting.append((time.monotonic(), line))
            else:
                self._dropped += 1

    def _told(self, record: logging.LogRecord) -> str:
        told = self.format(record)
        if record.exc_text:
            for place in self._places:
                told = told.replace(place, 'File "')
        return told

    def __enter__(self) -> Logbook:
        self._thread.start()
        logging.getLogger().addHandler(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        logging.getLogger().removeHandler(self)
        self.close()

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(_CLOSING_SECONDS)
        super().close()

    def _ship(self) -> None:
        while not self._over.wait(self._pause):
            if not self._write():
                return
        while self._waiting and self._write(last=True):
            pass

    def _write(self, *, last: bool = False) -> bool:
        """Puts one batch on record; false when there is no sense in going on."""
        with self._guard:
            taken = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
            dropped, self._dropped = self._dropped, 0
        if not taken:
            return True
        now = time.monotonic()
        lines = [Line(line.level, line.logger, line.message, line.trial, now - at) for at, line in taken]
        if dropped:
            lines.append(Line(Level.WARNING, _OWN, f"{dropped:,} lines are left out: more came than a log takes"))
        try:
            self._ledger.log(self._claim, lines)
        except LedgerError:
            self._over.set()
            return False
        except StillhouseError:
            with self._guard:  # the record may be back for the next batch
                room = QUEUE - len(self._waiting)
                self._waiting.extendleft(reversed(taken[:room]))
                self._dropped += dropped + max(0, len(taken) - room)
            return not last
        return True
