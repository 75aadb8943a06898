"""The database crashes, is locked or is slow: requests are told to come back, and find it as soon as it is there."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import Engine, create_engine, text

from benchmarks.outage import crash, load
from benchmarks.served import KEY
from search.files import Files
from service.app import create_app
from service.checker import CachedChecker, DirectChecker
from service.problems import MEDIA_TYPE
from service.settings import Settings
from service.store.engine import connect, latest_revision, migrate
from service.store.record import SqlRecord
from tests.databases import Postgres, new_postgres
from tests.processes import context, migrate_slowly
from tests.service.served import SPEC, listening
from workers.memory import MemoryArtifacts

pytestmark = pytest.mark.timeout(60)


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    """One of its own: it is going to crash."""
    server = new_postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def served(database: Postgres, tmp_path: Path) -> Iterator[str]:
    engine = connect(database.url, lock_seconds=0.3)
    migrate(engine)
    checker = CachedChecker(DirectChecker(Files(tmp_path)))
    settings = Settings(home=tmp_path, api_key=KEY)
    app = create_app(settings, SqlRecord(engine), MemoryArtifacts(), checker, schema_version=latest_revision())
    with listening(app) as url:
        yield url
    engine.dispose()


def test_a_crash_of_the_database_is_no_fault_of_ours(served: str, database: Postgres) -> None:
    with load(served, 4, SPEC) as seen:
        deadline = time.monotonic() + 20
        while len(seen.acknowledged) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        gone, back = crash(database, 0.5)
        while seen.first_success(back) == float("inf"):
            assert time.monotonic() < back + 5, "at most 5 s after it is back"
            time.sleep(0.05)
    told = seen.statuses(0, float("inf"))
    assert set(told) <= {200, 201, 503}, told
    assert told[503] > 0
    assert set(seen.statuses(0, float("inf"), "alive")) == {200}, "that it lives does not depend on the database"
    assert not seen.statuses(gone + 0.2, back - 0.2, "submit")[201]
    with httpx2.Client(base_url=served, headers={"Authorization": f"Bearer {KEY}"}) as http:
        assert all(http.get(f"/v1/jobs/{job}").status_code == 200 for job in seen.acknowledged)


@pytest.mark.parametrize("table", ["jobs", "keys"])
def test_a_locked_table_keeps_nobody_waiting_for_long(served: str, database: Postgres, table: str) -> None:
    engine = create_engine(database.url.replace("postgresql://", "postgresql+psycopg://"))
    headers = {"Authorization": f"Bearer {KEY}" if table == "jobs" else "Bearer sth_unknown"}
    with httpx2.Client(base_url=served, headers=headers) as http:
        http.post("/v1/jobs", json=SPEC, timeout=30)  # its plan is known from here on: what waits below is the record
        with engine.begin() as holding:
            holding.execute(text(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"))
            for ask in (lambda: http.get("/v1/jobs"), lambda: http.post("/v1/jobs", json=SPEC)):
                began = time.monotonic()
                answer = ask()
                assert (answer.status_code, answer.json()["code"]) == (503, "STORE_UNAVAILABLE"), answer.text
                assert answer.headers["content-type"] == MEDIA_TYPE
                assert int(answer.headers["retry-after"]) > 0
                assert time.monotonic() - began < 3
            assert http.get("/healthz").status_code == 200
        assert http.get("/v1/jobs").status_code == (200 if table == "jobs" else 401)
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A database without tables."""
    if request.param == "sqlite":
        engine = connect(f"sqlite:///{tmp_path / 'record.db'}")
    else:
        engine = connect(request.getfixturevalue("database").url)
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
    yield engine
    engine.dispose()


@pytest.mark.parametrize("at", [3, 25])
def test_a_migration_that_is_killed_is_made_anew_by_whoever_waits(empty: Engine, at: int) -> None:
    """Two start at once; the one that is at it is killed in the middle, and the other does all of it."""
    url = empty.url.render_as_string(hide_password=False)
    reader, writer = context.Pipe(duplex=False)
    victim = context.Process(target=migrate_slowly, args=(url, at, writer))
    victim.start()
    assert reader.recv() == at, "it stands in the middle of its transaction"
    done: list[BaseException | None] = []

    def wait_and_migrate() -> None:
        try:
            migrate(empty)
            done.append(None)
        except BaseException as error:
            done.append(error)

    other = threading.Thread(target=wait_and_migrate)
    other.start()
    time.sleep(0.2)
    assert not done, "one at a time"
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    victim.join()
    other.join()
    assert done == [None]
    migrate(empty)
    with empty.connect() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == latest_revision()
        assert connection.scalar(text("SELECT name FROM tenants")) == "default"
