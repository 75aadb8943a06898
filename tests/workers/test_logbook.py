"""Lines on their way to the record: in batches, bounded, and without anyone waiting for them."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from search.errors import StoreUnavailable
from search.spec import read_spec
from service.journal import Redaction
from workers import logbook as room
from workers.logbook import BATCH, QUEUE, Logbook
from workers.memory import MemoryLedger
from workers.ports import Claim, Level, Line

logger = logging.getLogger("stillhouse.test_logbook")
LONG = 1000.0
PAUSE = 0.01


class Watched(MemoryLedger):
    """Knows the sizes of the batches that came; `away` refuses them."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []
        self.away = False

    def log(self, claim: Claim, lines: Sequence[Line]) -> None:
        self.batches.append(len(lines))
        if self.away:
            raise StoreUnavailable("the database cannot be used now")
        super().log(claim, lines)


@pytest.fixture
def ledger() -> Watched:
    return Watched()


@contextmanager
def logging_to(ledger: Watched, pause: float = PAUSE) -> Iterator[Claim]:
    ledger.submit(
        read_spec({"teacher": {"name": "small_resnet"}, "dataset": {"name": "digits"}, "budget": {"macs": "50%"}})
    )
    claim = ledger.claim("test", LONG)
    assert claim is not None
    book = Logbook(ledger, claim, pause=pause)
    book.addFilter(Redaction(["open-sesame"]))
    with book:
        yield claim


def said(ledger: Watched, claim: Claim) -> list[str]:
    return [line.message for line in ledger.logs(claim.job_id, limit=10**6)]


def until(true: object, seconds: float = 3.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_lines_come_with_level_trial_and_traceback(ledger: Watched) -> None:
    with logging_to(ledger) as claim:
        logger.warning("trial %d is gone", 3, extra={"trial_id": "trial_x"})
        try:
            raise ValueError("what went wrong")
        except ValueError:
            logger.exception("it failed")
    first, second = ledger.logs(claim.job_id)
    assert (first.level, first.message, first.trial) == (Level.WARNING, "trial 3 is gone", "trial_x")
    assert first.logger == logger.name
    assert (second.level, second.message.splitlines()[-1]) == (Level.ERROR, "ValueError: what went wrong")
    logger.warning("afterwards")
    assert len(ledger.logs(claim.job_id)) == 2


def test_a_traceback_does_not_say_where_the_server_is_installed(ledger: Watched) -> None:
    with logging_to(ledger) as claim:
        try:
            json.loads("{")
        except ValueError:
            logger.exception("it failed")
    [line] = said(ledger, claim)
    assert [found.split("/")[-1] for found in re.findall(r'File "(.*?)"', line)] == [
        Path(__file__).name,
        "__init__.py",
        "decoder.py",
        "decoder.py",
    ]
    assert 'File "/' not in line


def test_no_secret_comes_along(ledger: Watched) -> None:
    with logging_to(ledger) as claim:
        for secret in ("sth_abc123", "whsec_abc123=", "postgresql://user:abc123@host/db", "the word is open-sesame"):
            logger.error("%s", secret)
    told = said(ledger, claim)
    assert len(told) == 4
    assert not any("abc123" in message or "open-sesame" in message for message in told)


def test_a_flood_is_cut_off_and_how_much_is_told(ledger: Watched) -> None:
    """10,000 lines at once: nobody waits for them, batches stay small, and every line is there or counted."""
    began = time.monotonic()
    with logging_to(ledger, pause=60.0) as claim:
        for number in range(10_000):
            logger.warning("line %d", number)
    assert time.monotonic() - began < 3
    told = said(ledger, claim)
    lines = [message for message in told if message.startswith("line ")]
    assert lines == [f"line {number}" for number in range(QUEUE)]
    assert [message for message in told if message not in lines] == [
        "8,000 lines are left out: more came than a log takes"
    ]
    assert max(ledger.batches) <= BATCH + 1


def test_lines_wait_while_the_record_is_away(ledger: Watched) -> None:
    ledger.away = True
    with logging_to(ledger) as claim:
        logger.warning("first")
        until(lambda: len(ledger.batches) > 2)
        logger.warning("second")
        ledger.away = False
        until(lambda: said(ledger, claim) == ["first", "second"])


def test_a_record_that_stays_away_keeps_nobody_from_leaving(ledger: Watched) -> None:
    ledger.away = True
    began = time.monotonic()
    with logging_to(ledger):
        logger.warning("first")
    assert time.monotonic() - began < 1


def test_a_claim_that_is_over_writes_no_more(ledger: Watched) -> None:
    with logging_to(ledger) as claim:
        ledger.release(claim)
        assert ledger.claim("another", LONG) is not None
        logger.warning("late")
        until(lambda: ledger.batches)
    assert said(ledger, claim) == []


def test_writing_does_not_log_itself(ledger: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    def talkative(claim: Claim, lines: Sequence[Line]) -> None:
        logger.error("writing")
        MemoryLedger.log(ledger, claim, lines)

    with logging_to(ledger) as claim:
        monkeypatch.setattr(ledger, "log", talkative)
        logger.warning("said")
        until(lambda: said(ledger, claim))
        time.sleep(5 * PAUSE)
    assert said(ledger, claim) == ["said"]
    assert room.PAUSE_SECONDS >= 0.5, "a commit a job and second is what a database hardly notices"
