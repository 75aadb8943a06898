"""A finalist whose distiller has several stages, killed in each of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, update

from search.files import Files
from search.spec import JobSpec
from service.store.engine import connect, migrate, writing
from service.store.tables import jobs as jobs_table
from service.store.tables import now
from tests.bundles import read_back_here
from tests.databases import WholeLedger
from tests.processes import context, drive
from tests.workers.scripted import Calm
from tests.workers.small_job import small_spec
from workers.artifacts import FolderArtifacts
from workers.backends.inline import InlineBackend
from workers.driver import Driver
from workers.memory import MemoryLedger
from workers.ports import JobState, Phase

STEPS, EVERY = 240, 8
SEARCH = {"strategy": {"name": "random"}, "weights": "slice", "trials": 1, "rungs": [1], "repeats": 0, "views": 2}


def weights(jobs: WholeLedger | MemoryLedger, job: str) -> str:
    """SHA-256 of the student's weights."""
    record = jobs.job(job)
    assert record.state is JobState.SUCCEEDED, record.reason
    return next(stored.artifact.sha256 for stored in record.files if stored.name == "student/weights.safetensors")


def undisturbed(spec: JobSpec, home: Path) -> str:
    ledger = MemoryLedger()
    job = ledger.submit(spec)[0].id
    claim = ledger.claim("tester", 1000)
    assert claim is not None
    artifacts, files = FolderArtifacts(home / "artifacts"), Files(cache=home / "cache")
    Driver(claim, ledger, artifacts, InlineBackend(threads=1), files, Calm()).drive()
    return weights(ledger, job)


def expire(engine: Engine) -> None:
    """Every lease, as if nobody had renewed it for its length."""
    with writing(engine) as connection:
        connection.execute(update(jobs_table).where(jobs_table.c.lease_until.is_not(None)).values(lease_until=now()))


@pytest.mark.parametrize(
    ("distiller", "kills"),
    [
        ({"name": "srm", "options": {"dictionary": 0.3, "matching": 0.3, "layers": ["layer3.0"]}}, (24, 96, 160)),
        ({"name": "pcl", "options": {"peers": 2}}, (96,)),
    ],
)
@pytest.mark.timeout(180)
def test_a_job_killed_in_each_stage_ends_with_the_student_it_would_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distiller: dict[str, Any], kills: tuple[int, ...]
) -> None:
    """Of `srm` steps 0 to 72 learn dictionaries, 72 to 144 match, the others distil; `pcl` has one stage."""
    finalists = {"count": 1, "steps": STEPS, "checkpoint_every": EVERY, "distill": distiller}
    spec = small_spec(finalists=finalists, search=SEARCH)
    home, url = tmp_path / "killed", f"sqlite:///{tmp_path / 'jobs.db'}"
    engine = connect(url)
    migrate(engine)
    jobs = WholeLedger(engine)
    job = jobs.submit(spec, idempotency_key=None, fingerprint=None)[0].id
    kept = home / "artifacts" / "scores"

    def until(reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not reached():
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def finals() -> bool:
        return Phase.FINALISTS in jobs.job(job).phases

    begun = 1  # the checkpoint of the search's one trial
    for step in kills:
        driver = context.Process(target=drive, args=(url, home))
        driver.start()
        until(finals)
        enough = begun + step // EVERY
        until(lambda enough=enough: len(list(kept.glob("*.json"))) >= enough)  # type: ignore[misc]
        driver.kill()
        driver.join()
        assert jobs.job(job).phases[Phase.FINALISTS].result is None, "killed too late"
        expire(engine)
    driver = context.Process(target=drive, args=(url, home))
    driver.start()
    driver.join()
    assert jobs.job(job).claims == 1 + len(kills)
    read_back_here(monkeypatch)
    assert weights(jobs, job) == undisturbed(spec, tmp_path / "calm")
    engine.dispose()
