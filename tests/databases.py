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
from service.store.record import SqlRecord
from service.store.tables import metadata, now, tenants
from service.store.values import DEFAULT, Caller, Listing, Scope
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


class Postgres:
    """
    A server of its own on a socket in a folder of its own. It does not listen on the network, and syncs its files only
    if it is to be `durable`.
    """

    def __init__(self, binaries: Path, *, durable: bool = False) -> None:
        self._binaries, self._fsync = binaries, "on" if durable else "off"
        self._home = Path(tempfile.mkdtemp(prefix="sth-pg-"))
        user = "postgres" if _unprivileged() else pwd.getpwuid(os.geteuid()).pw_name
        if _unprivileged():
            shutil.chown(self._home, user)
        self.url = f"postgresql://{user}@/postgres?host={self._home}"
        self._run("initdb", "-A", "trust", "-E", "UTF8", "-U", user, "--no-sync")

    def start(self) -> None:
        options = f"-c listen_addresses='' -c unix_socket_directories={self._home} -c fsync={self._fsync}"
        self._run("pg_ctl", "-w", "-l", str(self._home / "log"), "-o", options, "start")

    def stop(self) -> None:
        """At once, as a crash would: whoever is connected is cut off."""
        self._run("pg_ctl", "-w", "-m", "immediate", "stop")

    def remove(self) -> None:
        if (self._home / "data" / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._home)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*_unprivileged(), str(self._binaries / program), "-D", str(self._home / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT, cwd=self._home)


def new_postgres(*, durable: bool = False) -> Postgres:
    """Skips the test where there is none. It has not started yet, and whoever asked for it removes it."""
    binaries = _binaries()
    if binaries is None:
        missing("Postgres", "install its binaries (Debian: apt install postgresql)")
    return Postgres(binaries, durable=durable)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a fresh server."""
    server = new_postgres()
    try:
        server.start()
        yield server.url
    finally:
        server.remove()


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
