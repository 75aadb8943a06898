from __future__ import annotations

import threading
from collections.abc import Callable

from tests.workers.scripted import spec
from workers.heartbeat import Heartbeat
from workers.memory import MemoryLedger
from workers.ports import Claim, Wish

LEASE = 0.3


class Patient:
    def __init__(self, *, stall: float = 60) -> None:
        self.ledger = MemoryLedger()
        self.record, _ = self.ledger.submit(spec())
        self.claim = self.claimed()
        self.reasons: list[str] = []
        self.lost = threading.Event()
        self.heartbeat = Heartbeat(
            self.ledger, self.claim, lease_seconds=LEASE, stall_seconds=stall, lost=self._on_lost
        )

    def claimed(self) -> Claim:
        claim = self.ledger.claim("tester", LEASE)
        assert claim is not None
        return claim

    def _on_lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self.lost.set()


def within_a_second(reached: Callable[[], bool]) -> bool:
    pause = threading.Event()
    return any(reached() or pause.wait(0.02) for _ in range(50)) or reached()


def test_a_beating_heart_keeps_the_lease() -> None:
    patient = Patient()
    with patient.heartbeat:
        threading.Event().wait(3 * LEASE)
        assert patient.ledger.claim("rival", LEASE) is None
    assert patient.reasons == []


def test_a_cancellation_is_heard() -> None:
    patient = Patient()
    with patient.heartbeat:
        assert not patient.heartbeat.stopping()
        patient.ledger.request_cancel(patient.record.id)
        assert within_a_second(patient.heartbeat.stopping)


def test_a_pause_is_heard() -> None:
    patient = Patient()
    with patient.heartbeat:
        assert patient.heartbeat.wish() is Wish.GO_ON
        patient.ledger.request_pause(patient.record.id)
        assert within_a_second(patient.heartbeat.stopping)
        assert patient.heartbeat.wish() is Wish.PAUSE


def test_a_lost_lease_is_told() -> None:
    patient = Patient()
    patient.ledger.release(patient.claim)
    patient.claimed()
    with patient.heartbeat:
        assert patient.lost.wait(2)
    assert patient.reasons[0] == "another driver owns the job now"


def test_silence_from_the_work_is_told() -> None:
    patient = Patient(stall=0.1)
    with patient.heartbeat:
        assert patient.lost.wait(2)
    assert patient.reasons[0].startswith("nothing has moved")


def test_signs_of_life_keep_it_quiet() -> None:
    patient = Patient(stall=0.4)
    with patient.heartbeat:
        for _ in range(20):
            patient.heartbeat.alive()
            threading.Event().wait(0.05)
    assert patient.reasons == []
