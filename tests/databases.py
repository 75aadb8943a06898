"""The databases that tests of the record run on: files of SQLite, and one Postgres server for the whole session."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from service.store.engine import connect, migrate
from service.store.tables import metadata
from tests.needs import missing


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
    """A migrated, empty Postgres."""
    with _migrated.begin() as connection:
        connection.execute(text(f"TRUNCATE {', '.join(metadata.tables)}"))
    return _migrated


@pytest.fixture(scope="session")
def _migrated_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "record.db"
    engine = connect(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture
def sqlite(_migrated_file: Path, tmp_path: Path) -> Iterator[Engine]:
    """A migrated, empty SQLite file."""
    engine = connect(f"sqlite:///{shutil.copy(_migrated_file, tmp_path)}")
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Either of them, migrated and empty."""
    found: Engine = request.getfixturevalue(request.param)
    return found
