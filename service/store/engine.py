"""The way to the database: connections, transactions, migrations, and what goes wrong with them."""

from __future__ import annotations

import fcntl
import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pydantic_core import from_json
from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, exc, make_url, text
from sqlalchemy.pool import ConnectionPoolEntry

from search.errors import StorageFull, StoreUnavailable, UserError
from service.store.values import Connections, suits

_BUSY_SECONDS = 10
_POOL_SECONDS = 5
_REST_SECONDS = 1.0
"""What was used less than so long ago is taken for whole."""
_MIGRATIONS_LOCK = 0x5714_1104
_POSTGRES_OPTIONS = (
    "-c statement_timeout=15s -c idle_in_transaction_session_timeout=60s -c synchronous_commit=on "
    "-c max_parallel_workers_per_gather=0"  # to start another process takes longer than our statements do
)


def connect(url: str, *, pool: int = 16, lock_seconds: float = 5.0) -> Engine:
    """
    An engine for `sqlite:////path/to/file.db` (its folder is made when missing) or `postgresql://user@host/name`, with
    at most `pool` connections at a time. On Postgres a statement waits for others' locks for `lock_seconds`.

    A commit is on disk when it returns. Connections are made when they are needed, so a database that is down is
    noticed at the first transaction, as `StoreUnavailable`.

    Raises:
        UserError: the URL names no database that the record can be kept in.
        StoreUnavailable: the folder of a SQLite file cannot be made.
    """
    try:
        parsed = make_url(url)
    except exc.ArgumentError:
        raise UserError(f"not the URL of a database; {_EXAMPLES}") from None
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite(parsed, pool=pool)
        case "postgresql":
            options = f"{_POSTGRES_OPTIONS} -c lock_timeout={round(1000 * lock_seconds)}ms"
            engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                json_deserializer=_read_json,
                pool_size=pool,
                max_overflow=0,
                pool_timeout=_POOL_SECONDS,
                connect_args={"connect_timeout": 5, "options": options, "application_name": "stillhouse"},
            )
            _try_after_rest(engine)
            return engine
        case other:
            raise UserError(f"the record cannot be kept in `{other}`; {_EXAMPLES}")


def _read_json(text: str | bytes) -> Any:
    """As `json.loads`, but quicker."""
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:  # a lone surrogate, which a message of anybody's may hold
        return json.loads(text)


_EXAMPLES = "write `sqlite:////path/to/stillhouse.db` or `postgresql://user:password@host/database`"


def _try_after_rest(engine: Engine) -> None:
    """
    A connection that lay idle is tried before it is used; with `pool_pre_ping` each would be each time, for a round
    trip more. Whoever has one that broke within `_REST_SECONDS` is told as if he had been using it then, and no other
    of its age is used any more.
    """

    @event.listens_for(engine, "checkin")
    def laid_by(_: Any, place: ConnectionPoolEntry) -> None:
        place.info["since"] = time.monotonic()

    @event.listens_for(engine, "checkout")
    def taken(connection: Any, place: ConnectionPoolEntry, _: Any) -> None:
        if time.monotonic() - place.info.get("since", math.inf) > _REST_SECONDS:
            try:
                engine.dialect.do_ping(connection)
            except engine.dialect.loaded_dbapi.Error as error:
                raise exc.InvalidatePoolError from error


def _sqlite(url: URL, *, references: bool = True, pool: int = 1) -> Engine:
    if url.database in (None, "", ":memory:"):
        raise UserError("a record in SQLite needs a file: its processes share it; write `sqlite:////path/to/file.db`")
    try:
        Path(str(url.database)).absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(f"the folder of the database cannot be made: {error.strerror}") from error
    engine = create_engine(
        url,
        json_deserializer=_read_json,
        execution_options={"turn": threading.Lock()},
        pool_size=pool,
        max_overflow=0,
        pool_timeout=_POOL_SECONDS,
        connect_args={"timeout": _BUSY_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def opened(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin below, not when the driver thinks they should
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")  # NORMAL may lose the last commits in a power cut
        connection.execute(f"PRAGMA foreign_keys = {'ON' if references else 'OFF'}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A transaction that reads first and writes later is refused when another wrote in between, without waiting.
        reading = connection.get_execution_options().get("reading", False)
        connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")

    return engine


def connections(engine: Engine) -> Connections:
    """How many connections are in use and how many there may be, without looking at the database."""
    pool = engine.pool
    assert isinstance(pool, QueuePool)  # noqa: S101 - as `connect` makes it
    return Connections(pool.checkedout(), pool.size())


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """
    A transaction that is committed at the end, or rolled back when anything is raised.

    Raises:
        StorageFull: the database has no room left.
        StoreUnavailable: it cannot be reached, is locked, or did not answer in time.
    """
    with _turn(engine), _translated(), engine.begin() as connection:
        yield connection


@contextmanager
def _turn(engine: Engine) -> Iterator[None]:
    """
    Of threads that want to write to SQLite one at a time gets as far as the file, whose own way of waiting is to look
    again every now and then: with sixteen of them some were unlucky for seconds.
    """
    turn: threading.Lock | None = engine.get_execution_options().get("turn")
    if turn is None:
        yield
        return
    if not turn.acquire(timeout=_BUSY_SECONDS):
        raise StoreUnavailable("too many wait to write to the database; try again")
    try:
        yield
    finally:
        turn.release()


@contextmanager
def reading(engine: Engine, *, once: bool = False) -> Iterator[Connection]:
    """
    A transaction that sees one state of the record throughout; raises as `writing` does. A single statement sees that
    anyway: told that it is read `once`, Postgres is not asked for more.
    """
    options: dict[str, Any] = {"reading": True}
    if engine.dialect.name == "postgresql":
        options["isolation_level"] = "AUTOCOMMIT" if once else "REPEATABLE READ"
    with _translated(), engine.connect() as connection, connection.execution_options(**options).begin():
        yield connection


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except exc.SQLAlchemyError as error:
        raise _meaning(error) from error


def _meaning(error: exc.SQLAlchemyError) -> Exception:
    """What `error` means to whoever asked; the error itself when it is a mistake of this program."""
    if isinstance(error, exc.TimeoutError):
        return StoreUnavailable("all connections to the database are in use; try again")
    if not isinstance(error, exc.DBAPIError):
        return error
    code = _code(error.orig)
    if code in ("53100", "SQLITE_FULL"):
        return StorageFull("the database has no room left; free some space on its disk and try again")
    if isinstance(error.orig, sqlite3.Error):
        passing = code.startswith(_SQLITE_TROUBLE)
    else:
        passing = isinstance(error, (exc.OperationalError, exc.InterfaceError)) or error.connection_invalidated
    return (
        StoreUnavailable(f"the database cannot be used now ({code or 'no connection'}); try again")
        if passing
        else error
    )


_SQLITE_TROUBLE = tuple(
    f"SQLITE_{name}"
    for name in ("BUSY", "LOCKED", "IOERR", "CANTOPEN", "READONLY", "PROTOCOL", "NOTADB", "CORRUPT", "NOMEM", "PERM")
)


def _code(error: BaseException | None) -> str:
    """SQLSTATE on Postgres, the name of the result code on SQLite."""
    return str(getattr(error, "sqlstate", None) or getattr(error, "sqlite_errorname", None) or "")


def migrate(engine: Engine, revision: str = "head") -> None:
    """
    Brings the tables to `revision`, in one transaction: all or nothing. Of several that start at once one migrates and
    the others wait for it.

    Raises:
        StoreUnavailable: a newer version of this program has already migrated the database, or it is damaged.
    """
    if engine.dialect.name == "sqlite":
        # SQLite changes a table by making it anew, and could not drop the old one while others refer to it.
        changing = _sqlite(engine.url, references=False)
        try:
            _migrate(changing, revision)
        finally:
            changing.dispose()
    else:
        _migrate(engine, revision)


def _migrate(engine: Engine, to: str) -> None:
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL lock_timeout = 0"))
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _MIGRATIONS_LOCK})
        config = _config()
        known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
        revision = _revision(connection)
        if revision is not None and revision not in known:
            raise StoreUnavailable(
                f"the database is at revision {revision}, and this version knows none after {latest_revision()}: it "
                "was used by a newer version. Start that version, or restore a backup made before the upgrade"
            )
        config.attributes["connection"] = connection
        command.upgrade(config, to)
        if engine.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA foreign_key_check").first():
            raise StoreUnavailable(
                "a row of the database refers to one that is not there, so it was left as it is; restore a backup"
            )


def ready(url: str, *, shown: str, pool: int = 16) -> Engine:
    """
    The way to a database whose tables are those of this version or of a later one; a SQLite file is brought to them
    first. `shown` is the URL as errors may show it.

    Raises:
        UserError: the tables are those of an earlier version, or `connect` says so.
        StoreUnavailable: it cannot be reached, or a newer version has used the SQLite file.
    """
    engine = connect(url, pool=pool)
    if engine.dialect.name == "sqlite":
        migrate(engine)
    found, expected = current_revision(engine), latest_revision()
    if not suits(found, expected):
        engine.dispose()
        raise UserError(
            f"the tables in {shown} are at revision {found}, and this version works with {expected}; "
            "run `stillhouse migrate`, or start the version that belongs to them"
        )
    return engine


def latest_revision() -> str:
    """The revision that this program works with."""
    return str(ScriptDirectory.from_config(_config()).get_current_head())


def current_revision(engine: Engine) -> str | None:
    """The revision that the database is at; None when it has no tables."""
    with reading(engine) as connection:
        return _revision(connection)


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    folder = Path(__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def sole(home: Path) -> Iterator[None]:
    """
    Holds `home` for one server: with SQLite and local Ray a second one on the same folder would only do harm. The lock
    goes with the process, however it ends.

    Raises:
        UserError: another server holds it.
    """
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another server is using {home}; stop it, give this one a folder of its own with STILLHOUSE_HOME, or "
                "let both use one Postgres"
            ) from None
        yield
