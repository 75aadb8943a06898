"""A driver that is killed while it works, with real processes, a real database and real engines."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from service.drive import Launcher
from service.settings import Settings
from service.store.engine import connect, migrate
from tests.databases import WholeLedger
from tests.workers.small_job import small_spec
from workers.dispatcher import Dispatcher
from workers.ports import JobState, Phase
from workers.results import LibraryResult


@pytest.mark.parametrize(("backend", "strategy"), [("inline", "planned"), ("ray", "random")])
@pytest.mark.timeout(240)
def test_the_job_goes_on_by_itself_and_nothing_is_done_twice(tmp_path: Path, backend: str, strategy: str) -> None:
    """Killed in the search; one that plans is killed before that, while it makes its library."""
    settings = Settings(home=tmp_path, backend=backend, lease_seconds=5)
    engine = connect(settings.database_url)
    migrate(engine)
    jobs = ledger = WholeLedger(engine)
    spec = small_spec(
        search={
            "strategy": {"name": strategy},
            "weights": "slice",
            "library": {"images": 100},
            "trials": 8,
            "rungs": [10, 20],
            "reduction": 2,
            "views": 1,
            "calibration_batches": 1,
        }
    )
    job = jobs.submit(spec, idempotency_key=None, fingerprint=None)[0].id
    dispatcher = Dispatcher(ledger, Launcher(settings), owner="tester", slots=1, lease_seconds=settings.lease_seconds)

    def scored() -> list[tuple[str, int]]:
        found = jobs.events(job, after=0, limit=10_000)
        return [(event.data["trial"], event.data["rung"]) for event in found if event.kind == "TRIAL_SCORED"]

    def until(reached: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not reached():
            log = (tmp_path / "logs" / f"{job}.log").read_text() if (tmp_path / "logs").exists() else ""
            assert time.monotonic() < deadline, log[-3000:]
            assert jobs.job(job).state is not JobState.FAILED, jobs.job(job).reason + log[-3000:]
            dispatcher.tend()
            time.sleep(0.05)

    def kill() -> None:
        (running,) = dispatcher._running
        os.killpg(running.process.pid, signal.SIGKILL)

    def in_library() -> bool:
        found = jobs.events(job, after=0, limit=10_000)
        return any(event.kind == "PROGRESS" and event.data["phase"] == "library" for event in found)

    planned = strategy == "planned"
    if planned:
        until(in_library, 90)
        kill()
    until(lambda: len(scored()) >= 3, 90)
    kill()
    until(lambda: jobs.job(job).state is JobState.SUCCEEDED, 120)

    assert max(Counter(scored()).values()) == 1
    record = jobs.job(job)
    assert record.claims == 2 + planned
    if planned:
        library = LibraryResult.model_validate(record.phases[Phase.LIBRARY].result)
        assert 0 < library.reused < library.entries, "what was on its shelf when the driver died was not learned again"
        assert library.reused + library.trained == library.entries
    assert {stored.name for stored in record.files} >= {"student/weights.safetensors", "student/architecture.json"}
    trials = ledger.trials(job)
    assert len(trials) == 8
    assert len({trial.key for trial in trials}) == 8
    sequence = [event.seq for event in jobs.events(job, after=0, limit=10_000)]
    assert sequence == list(range(1, len(sequence) + 1))
    until(lambda: not dispatcher._running, 10)
