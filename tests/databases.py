"""The databases that tests of the record run on: files of SQLite, and one Postgres server for the whole session."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, delete, insert, text

from service.filters import By, Comparison, Operator
from service.store.engine import connect, migrate
from service.store.jobs import SqlJobs
from service.store.ledger import SqlLedger
from service.store.ports import DEFAULT, Caller, Listing, Scope
from service.store.record import SqlRecord
from service.store.tables import metadata, now, tenants
from tests.needs import missing
from workers.ports import JobRecord, JobState

NEWEST_FIRST = (By(("created_at",), True), By(("id",), True))
OPERATOR = Caller(DEFAULT, "test", Scope.ADMIN)


class WholeLedger(SqlJobs, SqlLedger):
    """Both sides of the record in one object, as `MemoryLedger` has them; its user is of the tenant `default`."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, OPERATOR)
        record = SqlRecord(engine)
        self.ping, self.schema_version = record.ping, record.schema_version
        self.counts = lambda: record.figures(None, reach_seconds=0).jobs
        self.account, self.webhooks = record.account(OPERATOR), record.webhooks(OPERATOR)
        self.views = record.views(OPERATOR)

        self.logs = self.views.logs

    def jobs(
        self, *, limit: int, before: tuple[datetime, str] | None = None, state: JobState | None = None
    ) -> list[JobRecord]:
        """Newest first, as `MemoryLedger.jobs` has them."""
        where = None if state is None else Comparison(("state",), Operator.EQUAL, str(state))
        page = self.views.jobs(Listing(NEWEST_FIRST, limit, where, before))
        return [record for record, _ in page.items]


def _binaries() -> Path | None:
    """The folder with `initdb`: on the path, or where Debian keeps it."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None


def _unprivileged() -> list[str]:
    """Postgres refuses to run as root."""
    return ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a fresh server on a socket in a folder of its own; it neither syncs nor listens on the network."""
    binaries = _binaries()
    if binaries is None:
        missing("Postgres", "install its binaries (Debian: apt install postgresql)")
    home = Path(tempfile.mkdtemp(prefix="sth-pg-"))
    user = "postgres" if _unprivileged() else pwd.getpwuid(os.geteuid()).pw_name
    if _unprivileged():
        shutil.chown(home, user)

    def server(*command: str) -> None:
        subprocess.run(
            [*_unprivileged(), *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd=home
        )

    data, options = str(home / "data"), f"-c listen_addresses='' -c unix_socket_directories={home} -c fsync=off"
    try:
        server(str(binaries / "initdb"), "-D", data, "-A", "trust", "-E", "UTF8", "-U", user, "--no-sync")
        server(str(binaries / "pg_ctl"), "-D", data, "-w", "-l", str(home / "log"), "-o", options, "start")
        yield f"postgresql://{user}@/postgres?host={home}"
    finally:
        if (home / "data" / "postmaster.pid").exists():
            server(str(binaries / "pg_ctl"), "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def _migrated(postgres_server: str) -> Iterator[Engine]:
    engine = connect(postgres_server)
    migrate(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def postgres(_migrated: Engine) -> Engine:
    """A migrated Postgres with nothing in it but the tenant `default`."""
    return emptied(_migrated)


def emptied(postgres: Engine) -> Engine:
    with postgres.begin() as connection:
        # Quicker than TRUNCATE for a few rows; a replica looks neither at references nor at the audit's trigger.
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        for table in metadata.tables.values():
            connection.execute(delete(table))
        connection.execute(insert(tenants).values(name=DEFAULT, created_at=now()))
    return postgres


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "record.db"
    engine = connect(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture
def sqlite(migrated_file: Path, tmp_path: Path) -> Iterator[Engine]:
    """A migrated SQLite file with nothing in it but the tenant `default`."""
    engine = connect(f"sqlite:///{shutil.copy(migrated_file, tmp_path)}")
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Either of them, migrated and empty."""
    found: Engine = request.getfixturevalue(request.param)
    return found
