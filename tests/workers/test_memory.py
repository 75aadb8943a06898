"""What only the record in memory has: a clock that a test can set. Its laws are in `tests.contracts.test_ledger`."""

from __future__ import annotations

from search.spec import read_spec
from workers.memory import MemoryLedger
from workers.ports import Claim, Phase


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def claimed(ledger: MemoryLedger, lease_seconds: float) -> Claim:
    ledger.submit(read_spec({"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": {"macs": "50%"}}))
    claim = ledger.claim("tester", lease_seconds)
    assert claim is not None
    return claim


def test_a_lease_ends_by_the_ledgers_clock() -> None:
    clock = Clock()
    ledger = MemoryLedger(clock)
    claimed(ledger, 30)
    clock.now += 29.5
    assert ledger.claim("tester", 30) is None
    clock.now += 0.5
    again = ledger.claim("tester", 30)
    assert again is not None
    assert again.token == 2


def test_a_phase_takes_as_long_as_the_ledgers_clock_says() -> None:
    clock = Clock()
    ledger = MemoryLedger(clock)
    claim = claimed(ledger, 30)
    ledger.enter(claim, Phase.TEACHER)
    clock.now += 12.25
    ledger.finish(claim, Phase.TEACHER, {})
    assert ledger.job(claim.job_id).phases[Phase.TEACHER].seconds == 12.25


def test_a_clock_that_goes_back_gives_no_negative_time() -> None:
    clock = Clock()
    ledger = MemoryLedger(clock)
    claim = claimed(ledger, 30)
    ledger.enter(claim, Phase.TEACHER)
    clock.now -= 3600
    ledger.finish(claim, Phase.TEACHER, {})
    assert ledger.job(claim.job_id).phases[Phase.TEACHER].seconds == 0
