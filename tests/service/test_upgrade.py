"""A record that an earlier version left is taken over whole: `frozen/<revision>.sql` is what that version wrote."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert, select, text, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from search.errors import KeyReused, StoreUnavailable
from search.spec import read_spec
from service.store.engine import connect, current_revision, latest_revision, migrate, reading, writing
from service.store.record import SqlRecord
from service.store.tables import audit, jobs, now, tenants
from service.store.values import DEFAULT, Caller, Listing, Quota, Scope
from tests.databases import NEWEST_FIRST, OPERATOR, WholeLedger
from workers.ports import JobState

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start

FROZEN = sorted(Path(__file__).with_name("frozen").glob("*.sql"))
SPEC = read_spec({"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": {"macs": "50%"}})
STRANGER = Caller("another", "test", Scope.ADMIN)


@pytest.fixture(params=FROZEN, ids=lambda path: path.stem)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A SQLite file as it was found."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as file:
        file.executescript(request.param.read_text(encoding="utf-8"))
    engine = connect(f"sqlite:///{path}")
    assert current_revision(engine) == request.param.stem
    yield engine
    engine.dispose()


def test_every_revision_but_the_latest_is_kept_or_came_before_there_were_users() -> None:
    assert [path.stem for path in FROZEN] == ["0002", "0003", "0004"]
    assert latest_revision() == "0005", "freeze what this version writes before the next revision goes out"


def test_what_was_on_record_is_the_default_tenants_and_complete(old: Engine) -> None:
    with sqlite3.connect(str(old.url.database)) as file:
        counted = {
            table: file.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 - names from the line below
            for table in ("jobs", "phases", "trials", "scores", "artifacts", "events")
        }
    migrate(old)
    ledger = WholeLedger(old)
    kept = ledger.jobs(limit=10)
    assert [job.state for job in kept] == [JobState.QUEUED, JobState.PREPARING, JobState.SUCCEEDED]
    assert counted["jobs"] == len(kept)
    assert counted["events"] == sum(len(ledger.events(job.id)) for job in kept)
    [trial] = ledger.trials(kept[-1].id)
    assert (trial.key, trial.scores[0].accuracy) == ("key-a", 0.5)
    assert [file.name for file in kept[-1].files] == ["student/weights.safetensors"]
    assert len(kept[-1].phases) == 2
    record = SqlRecord(old)
    with writing(old) as connection:
        connection.execute(insert(tenants).values(name=STRANGER.tenant, created_at=now()))
    assert record.views(STRANGER).jobs(Listing(NEWEST_FIRST, 10)).items == []
    assert record.account(OPERATOR).usage()[Quota.STORED_BYTES].used == 12


def test_keys_of_submissions_go_on_being_known_and_each_tenant_has_its_own(old: Engine) -> None:
    migrate(old)
    with writing(old) as connection:
        connection.execute(insert(tenants).values(name=STRANGER.tenant, created_at=now()))
    mine, theirs = SqlRecord(old).jobs(OPERATOR), SqlRecord(old).jobs(STRANGER)
    with pytest.raises(KeyReused):
        mine.submit(SPEC, idempotency_key="nightly", fingerprint="another")
    former, new = mine.submit(SPEC, idempotency_key="nightly", fingerprint="f1")
    assert (former.state, new) == (JobState.SUCCEEDED, False)
    other, new = theirs.submit(SPEC, idempotency_key="nightly", fingerprint="f1")
    assert new
    assert other.id != former.id


def test_a_job_under_way_stays_with_its_driver(old: Engine) -> None:
    """Its claim was given by a version that knew nothing of charges; nothing is charged for it."""
    migrate(old)
    ledger = WholeLedger(old)
    claim = ledger.claim("newer", 1000)
    assert claim is not None
    assert ledger.claim("newer", 1000) is None, "the other one's lease goes on"
    assert SqlRecord(old).account(OPERATOR).usage()[Quota.CONCURRENT_TRIALS].used == 4


def test_a_version_that_knows_no_tenants_may_go_on_beside_this_one(engine: Engine) -> None:
    job, _ = WholeLedger(engine).submit(SPEC)
    with writing(engine) as connection:
        columns = [column.name for column in jobs.c if column.name not in ("tenant", "charged_at", "id")]
        listed = ", ".join(columns)
        connection.execute(
            text(f"INSERT INTO jobs (id, {listed}) SELECT 'job_old', {listed} FROM jobs WHERE id = :id"),  # noqa: S608
            {"id": job.id},
        )
    assert {found.id for found in WholeLedger(engine).jobs(limit=5)} == {job.id, "job_old"}


def test_the_database_itself_keeps_the_rules(engine: Engine) -> None:
    record = SqlRecord(engine)
    record.jobs(OPERATOR).submit(SPEC)
    [entry] = record.account(OPERATOR).audit(limit=5)
    for change in (
        update(audit).values(actor="somebody else"),
        audit.delete().where(audit.c.id == entry.id),
        update(jobs).values(tenant="nobody"),
    ):
        with pytest.raises((DBAPIError, IntegrityError)), writing(engine) as connection:
            connection.execute(change)
    assert record.account(OPERATOR).audit(limit=5) == [entry]


def test_a_migration_that_leaves_a_reference_to_nothing_is_undone(old: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    found = current_revision(old)
    with sqlite3.connect(str(old.url.database)) as file:  # which does not look at references
        file.execute("UPDATE artifacts SET job_id = 'job_gone'")
    with pytest.raises(StoreUnavailable, match="refers to one that is not there"):
        migrate(old)
    assert current_revision(old) == found


def test_references_are_looked_at_again_after_a_migration(old: Engine) -> None:
    migrate(old)
    with reading(old) as connection:
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert DEFAULT in connection.scalars(select(tenants.c.name)).all()
