"""The dispatcher with real processes that stand in for drivers."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from search.spec import JobSpec
from tests.workers.scripted import spec
from workers.dispatcher import Dispatcher
from workers.memory import MemoryLedger
from workers.ports import Claim, JobState

SLEEP = "import time; time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


class Stage:
    def __init__(self, program: str = SLEEP, *, slots: int = 2, grace: float = 0.1, job: JobSpec | None = None) -> None:
        self.ledger = MemoryLedger()
        self.job = job or spec()
        self.program = program
        self.processes: list[subprocess.Popen[bytes]] = []
        self.claims: list[Claim] = []
        self.dispatcher = Dispatcher(
            self.ledger, self.launch, owner="tester", slots=slots, lease_seconds=60, grace_seconds=grace
        )

    def launch(self, claim: Claim) -> subprocess.Popen[bytes]:
        self.claims.append(claim)
        process = subprocess.Popen([sys.executable, "-c", self.program], start_new_session=True)
        self.processes.append(process)
        return process

    def submit(self) -> str:
        record, _ = self.ledger.submit(self.job)
        return record.id

    def until(self, reached: Callable[[], bool]) -> None:
        for _ in range(200):
            self.dispatcher.tend()
            if reached():
                return
            time.sleep(0.02)
        raise AssertionError("it did not come to that")


@pytest.fixture
def stages() -> Iterator[Callable[..., Stage]]:
    made: list[Stage] = []

    def make(*args: object, **options: object) -> Stage:
        made.append(Stage(*args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for stage in made:
        for process in stage.processes:
            process.kill()
            process.wait()


def test_no_more_drivers_than_slots(stages: Callable[..., Stage]) -> None:
    stage = stages(slots=2)
    for _ in range(4):
        stage.submit()
    stage.dispatcher.tend()
    stage.dispatcher.tend()
    assert len(stage.processes) == 2


def test_a_driver_that_dies_gives_its_job_to_the_next_at_once(stages: Callable[..., Stage]) -> None:
    stage = stages()
    job = stage.submit()
    stage.dispatcher.tend()
    stage.processes[0].kill()
    stage.until(lambda: len(stage.claims) == 2)
    assert [claim.job_id for claim in stage.claims] == [job, job]
    assert stage.claims[1].token > stage.claims[0].token


def test_a_job_whose_drivers_keep_dying_is_given_up(stages: Callable[..., Stage]) -> None:
    stage = stages("raise SystemExit(1)")
    job = stage.submit()
    stage.until(lambda: stage.ledger.job(job).state is JobState.FAILED)
    assert stage.ledger.job(job).reason.startswith("INFRASTRUCTURE_EXHAUSTED")
    # The first driver, and one more for each of the attempts a dead machine is forgiven.
    assert len(stage.claims) == 1 + stage.job.resources.attempts


def test_a_driver_that_does_not_heed_a_cancellation_is_killed(stages: Callable[..., Stage]) -> None:
    stage = stages(STUBBORN)
    job = stage.submit()
    stage.dispatcher.tend()
    stage.ledger.request_cancel(job)
    stage.until(lambda: stage.ledger.job(job).state is JobState.CANCELLED)
    assert stage.processes[0].wait(timeout=2) < 0
    assert len(stage.claims) == 1


def test_a_driver_that_does_not_heed_a_pause_is_killed_and_its_job_laid_down(stages: Callable[..., Stage]) -> None:
    stage = stages(STUBBORN)
    job = stage.submit()
    stage.dispatcher.tend()
    stage.ledger.request_pause(job)
    stage.until(lambda: not stage.ledger.job(job).leased)
    assert stage.processes[0].wait(timeout=2) < 0
    stage.dispatcher.tend()
    assert len(stage.claims) == 1
    stage.ledger.resume(job)
    stage.until(lambda: len(stage.claims) == 2)


def test_a_driver_that_closed_its_job_leaves_room_for_another(stages: Callable[..., Stage]) -> None:
    stage = stages(slots=1)
    first, second = stage.submit(), stage.submit()
    stage.dispatcher.tend()
    stage.ledger.close(stage.claims[0], JobState.CANCELLED, "done")
    stage.processes[0].kill()
    stage.until(lambda: len(stage.claims) == 2)
    assert {claim.job_id for claim in stage.claims} == {first, second}


def test_stopping_the_dispatcher_leaves_its_drivers_alone(stages: Callable[..., Stage]) -> None:
    stage = stages()
    stage.submit()
    stop = threading.Event()
    thread = threading.Thread(target=stage.dispatcher.run, args=[stop])
    thread.start()
    for _ in range(100):
        if stage.processes:
            break
        time.sleep(0.02)
    stop.set()
    thread.join()
    assert stage.processes[0].poll() is None
