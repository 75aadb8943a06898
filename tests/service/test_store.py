"""Connections, migrations and what goes wrong with a database."""

from __future__ import annotations

import json
import pickle
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, Engine, create_engine, event, func, insert, inspect, literal, select, text
from sqlalchemy.engine.interfaces import ReflectedIndex
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from search.errors import StorageFull, StoreUnavailable, UserError
from search.spec import read_spec
from service.store.engine import (
    _config,
    connect,
    current_revision,
    latest_revision,
    migrate,
    reading,
    ready,
    sole,
    writing,
)
from service.store.record import SqlRecord
from service.store.tables import Words, events, in_seconds, jobs, metadata, now
from tests.databases import WholeLedger
from tests.processes import context, hold, migrate_once

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start

SPEC = read_spec({"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": {"macs": "50%"}})


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'empty.db'}"
        return
    server = create_engine(
        request.getfixturevalue("postgres_server").replace("postgresql://", "postgresql+psycopg://"),
        isolation_level="AUTOCOMMIT",
    )
    with server.connect() as connection:
        connection.execute(text("DROP DATABASE IF EXISTS empty WITH (FORCE)"))
        connection.execute(text("CREATE DATABASE empty"))
    yield server.url.set(database="empty").render_as_string(hide_password=False)
    server.dispose()


@pytest.fixture
def empty(empty_url: str) -> Iterator[Engine]:
    engine = connect(empty_url)
    yield engine
    engine.dispose()


def schema(engine: Engine) -> dict[str, object]:
    """All that the database says of its tables, but for that of the migrations."""
    found = inspect(engine)

    def index(of: ReflectedIndex) -> tuple[object, ...]:
        options = {
            name: str(value).strip("()[]") for name, value in of.get("dialect_options", {}).items() if value is not None
        }
        return (of["name"], of["column_names"], of["unique"], sorted(options.items()))

    return {
        table: (
            [(c["name"], str(c["type"]), c["nullable"], c["default"]) for c in found.get_columns(table)],
            found.get_pk_constraint(table),
            sorted((f["name"], f["constrained_columns"], f["referred_table"]) for f in found.get_foreign_keys(table)),
            sorted((u["name"], u["column_names"]) for u in found.get_unique_constraints(table)),
            sorted((str(c["name"]), c["sqltext"]) for c in found.get_check_constraints(table)),
            sorted((index(i) for i in found.get_indexes(table)), key=str),
        )
        for table in found.get_table_names()
        if table != "alembic_version"
    }


class TestMigrations:
    def test_an_empty_database_is_brought_to_the_latest_revision(self, empty: Engine) -> None:
        assert current_revision(empty) is None
        migrate(empty)
        assert current_revision(empty) == latest_revision() == SqlRecord(empty).schema_version()
        migrate(empty)  # again: nothing to do
        job, _ = WholeLedger(empty).submit(SPEC)
        migrate(empty)
        assert WholeLedger(empty).job(job.id) == job

    def test_the_tables_are_what_the_migrations_make(self, empty: Engine) -> None:
        migrate(empty)
        with reading(empty) as connection:
            context = MigrationContext.configure(connection, opts={"compare_server_default": True})
            assert compare_metadata(context, metadata) == []
        migrated = schema(empty)
        with empty.begin() as connection:
            connection.execute(text("DROP TABLE alembic_version"))
            metadata.drop_all(connection)
        metadata.create_all(empty)
        assert migrated == schema(empty)
        assert len(migrated) == 19

    def test_a_database_of_a_newer_version_is_refused(self, empty: Engine) -> None:
        migrate(empty)
        _say_revision(empty, "9999")
        with pytest.raises(StoreUnavailable, match=r"revision 9999.*used by a newer version"):
            migrate(empty)
        assert current_revision(empty) == "9999"

    def test_servers_start_on_postgres_that_a_newer_version_has_migrated(self, empty: Engine) -> None:
        """They could not be replaced one by one otherwise; on SQLite there is one, and it is the newer."""
        url = empty.url.render_as_string(hide_password=False)
        migrate(empty)
        _say_revision(empty, "9999")
        if empty.dialect.name == "sqlite":
            with pytest.raises(StoreUnavailable, match="used by a newer version"):
                ready(url, shown="here")
            return
        ready(url, shown="here").dispose()
        _say_revision(empty, "0001")
        with pytest.raises(UserError, match=r"the tables in here are at revision 0001.*stillhouse migrate"):
            ready(url, shown="here")

    def test_revisions_are_numbers_that_rise(self) -> None:
        """`service.store.values.suits` tells later ones by that."""
        names = [script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()][::-1]
        assert names == [f"{number:04}" for number in range(1, len(names) + 1)]

    def test_an_interrupted_migration_leaves_nothing_and_can_be_run_again(
        self, empty: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("alembic.op.create_index", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                migrate(empty)
        assert inspect(empty).get_table_names() == []
        migrate(empty)
        assert current_revision(empty) == latest_revision()

    def test_of_several_that_start_at_once_one_migrates(self, empty_url: str) -> None:
        starters = [context.Process(target=migrate_once, args=(empty_url,)) for _ in range(3)]
        for starter in starters:
            starter.start()
        for starter in starters:
            starter.join()
        assert [starter.exitcode for starter in starters] == [0, 0, 0]
        engine = connect(empty_url)
        assert current_revision(engine) == latest_revision()
        engine.dispose()


def _say_revision(engine: Engine, revision: str) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


class TestConnections:
    def test_what_is_committed_in_sqlite_is_on_disk(self, sqlite: Engine) -> None:
        with sqlite.connect() as connection:
            assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
            assert connection.scalar(text("PRAGMA synchronous")) == 2  # FULL
            assert connection.scalar(text("PRAGMA foreign_keys")) == 1
            assert connection.scalar(text("PRAGMA busy_timeout")) == 10_000

    def test_postgres_does_not_let_us_wait_for_ever(self, postgres: Engine) -> None:
        with postgres.connect() as connection:
            assert connection.scalar(text("SHOW statement_timeout")) == "15s"
            assert connection.scalar(text("SHOW lock_timeout")) == "5s"
            assert connection.scalar(text("SHOW synchronous_commit")) == "on"

    @pytest.mark.parametrize(
        "url", ["", "stillhouse.db", "mysql://localhost/stillhouse", "sqlite://", "sqlite:///:memory:"]
    )
    def test_an_url_that_will_not_do_is_refused_with_one_that_will(self, url: str) -> None:
        with pytest.raises(UserError, match=r"sqlite:////path"):
            connect(url)

    def test_the_folder_of_a_file_is_made(self, tmp_path: Path) -> None:
        engine = connect(f"sqlite:///{tmp_path / 'a' / 'b' / 'record.db'}")
        migrate(engine)
        engine.dispose()
        assert (tmp_path / "a" / "b" / "record.db").is_file()

    def test_a_rule_broken_in_the_program_is_not_called_the_databases_fault(self, engine: Engine) -> None:
        with pytest.raises((OperationalError, ProgrammingError)), writing(engine) as connection:
            connection.execute(text("SELECT * FROM nowhere"))
        with pytest.raises(IntegrityError), writing(engine) as connection:
            connection.execute(insert(events).values(job_id="job_nobody", seq=1, kind="X", data={}, at=now()))

    def test_a_reader_sees_one_state_throughout(self, engine: Engine) -> None:
        ledger = WholeLedger(engine)
        with reading(engine) as connection:
            assert connection.scalar(select(func.count()).select_from(jobs)) == 0
            ledger.submit(SPEC)
            assert connection.scalar(select(func.count()).select_from(jobs)) == 0
        assert len(ledger.jobs(limit=5)) == 1

    def test_what_is_raised_inside_undoes_everything(self, engine: Engine) -> None:
        with suppress(KeyError), writing(engine) as connection:
            connection.execute(text("DELETE FROM alembic_version"))
            raise KeyError
        assert current_revision(engine) == latest_revision()


class TestColumns:
    def test_times_are_the_databases_own_and_exact(self, engine: Engine) -> None:
        with reading(engine) as connection:
            here = datetime.now(UTC)
            there, later = connection.execute(select(now(), in_seconds(90.25))).one()
        assert there.utcoffset() == timedelta(0)
        assert abs(there - here) < timedelta(seconds=2)
        assert timedelta(0) <= later - there - timedelta(seconds=90.25) < timedelta(seconds=1)

    def test_the_clock_goes_on_within_a_transaction(self, engine: Engine) -> None:
        with reading(engine) as connection:
            first = connection.execute(select(now())).scalar_one()
            time.sleep(0.02)
            assert connection.execute(select(now())).scalar_one() - first >= timedelta(seconds=0.015)

    @pytest.mark.parametrize(
        ("given", "kept"), [("plain ✓ 🏭", "plain ✓ 🏭"), ("a\0b", "a�b"), ("a\ud800b", "a�b"), (None, None)]
    )
    def test_any_text_can_be_kept(self, engine: Engine, given: str | None, kept: str | None) -> None:
        assert Words().process_bind_param(given, engine.dialect) == kept

    @settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.recursive(
            st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=())),
            lambda part: st.lists(part) | st.dictionaries(st.text(st.characters(exclude_categories=())), part),
        )
    )
    @example("a\ud800b")
    @example({"\udc00": [2**70, 1e-310, "\0"]})
    def test_json_comes_back_as_the_standard_library_reads_it(self, engine: Engine, value: object) -> None:
        """What a message of anybody's may hold is no less."""
        with reading(engine) as connection:
            found = connection.execute(select(literal(value, JSON()))).scalar_one()
        assert repr(found) == repr(json.loads(json.dumps(value)))


class TestTrouble:
    def test_a_locked_sqlite_is_unavailable_for_writers_only(self, sqlite: Engine) -> None:
        ledger = WholeLedger(sqlite)
        path = str(sqlite.url.database)
        with sqlite.connect() as connection:
            connection.exec_driver_sql("PRAGMA busy_timeout = 50")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable, match="SQLITE_BUSY"):
                ledger.submit(SPEC)
            assert ledger.jobs(limit=5) == []
            other.execute("ROLLBACK")
        ledger.submit(SPEC)

    def test_a_full_sqlite_says_so_and_recovers(self, sqlite: Engine) -> None:
        ledger = WholeLedger(sqlite)
        job, _ = ledger.submit(SPEC)
        with sqlite.connect() as connection:
            pages = connection.scalar(text("PRAGMA page_count"))
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageFull, match="no room left"):
            deque(ledger.submit(SPEC) for _ in range(200))
        kept = ledger.jobs(limit=500)
        assert job in kept
        assert all([event.kind for event in ledger.events(record.id)] == ["JOB_QUEUED"] for record in kept)
        with sqlite.connect() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
        ledger.submit(SPEC)

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "record.db").write_bytes(b"not a database, but long enough to be read as one" * 100)
        engine = connect(f"sqlite:///{tmp_path / 'record.db'}")
        with pytest.raises(StoreUnavailable, match="SQLITE_NOTADB"):
            migrate(engine)
        engine.dispose()

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(StoreUnavailable, match="Not a directory"):
            connect(f"sqlite:///{tmp_path / 'file' / 'below' / 'record.db'}")

    def test_a_server_that_is_not_there(self, tmp_path: Path) -> None:
        engine = connect(f"postgresql://nobody@/nothing?host={tmp_path}")
        with pytest.raises(StoreUnavailable):
            SqlRecord(engine).ping()
        engine.dispose()

    def test_connections_broken_by_the_server_are_replaced(
        self, postgres: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = postgres.url.set(drivername="postgresql").render_as_string(hide_password=False)
        single = connect(url, pool=1)
        ledger = WholeLedger(single)
        job, _ = ledger.submit(SPEC)

        def use(broken: bool) -> None:
            with writing(single) as connection:
                process = connection.scalar(text("SELECT pg_backend_pid()"))
                if broken:
                    kill(process)
                connection.execute(text("SELECT 1"))
            kill(process)  # in the pool

        def kill(process: int | None) -> None:
            with psycopg.connect(url) as other:
                other.execute("SELECT pg_terminate_backend(%s, 1000)", [process])

        with pytest.raises(StoreUnavailable):
            use(broken=True)
        assert ledger.job(job.id) == job
        use(broken=False)
        with pytest.raises(StoreUnavailable):  # it was used a moment ago, so nobody has tried it
            ledger.job(job.id)
        assert ledger.job(job.id) == job
        use(broken=False)
        monkeypatch.setattr("service.store.engine._REST_SECONDS", 0.0)
        assert ledger.job(job.id) == job
        single.dispose()

    def test_equal_submissions_that_both_find_nothing_make_one_job(self, postgres: Engine) -> None:
        """On Postgres both may look before either has written; the constraint decides, and the slower one is told."""
        both_looked = threading.Barrier(2)

        def wait(_c: object, _u: object, statement: str, *_: object) -> None:
            if statement.startswith("INSERT INTO jobs"):
                both_looked.wait(10)

        ledger = WholeLedger(postgres)
        event.listen(postgres, "before_cursor_execute", wait)
        try:
            with ThreadPoolExecutor(2) as pool:
                answers = list(pool.map(lambda _: ledger.submit(SPEC, idempotency_key="k", fingerprint="f"), range(2)))
        finally:
            event.remove(postgres, "before_cursor_execute", wait)
        assert answers[0][0] == answers[1][0]
        assert sorted(new for _, new in answers) == [False, True]
        assert len(ledger.jobs(limit=5)) == 1

    def test_a_lock_held_for_long_is_given_up(self, postgres: Engine) -> None:
        ledger = WholeLedger(postgres)
        job, _ = ledger.submit(SPEC)

        def hurry() -> None:
            with writing(postgres) as waiting:
                waiting.execute(text("SET LOCAL lock_timeout = '50ms'"))
                waiting.execute(text("UPDATE jobs SET priority = 1"))

        with postgres.begin() as holder:
            holder.execute(text("SELECT id FROM jobs FOR UPDATE"))
            with pytest.raises(StoreUnavailable, match="55P03"):
                hurry()
            assert ledger.job(job.id) == job  # readers never wait
            assert ledger.claim("tester", 10) is None  # and neither do claimants
        assert ledger.claim("tester", 10) is not None

    def test_errors_say_nothing_internal(self, tmp_path: Path) -> None:
        engine = connect(f"postgresql://someone:secret@/nothing?host={tmp_path}")
        with pytest.raises(StoreUnavailable) as caught:
            SqlRecord(engine).ping()
        engine.dispose()
        assert "secret" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
        assert (type(again), again.code, str(again)) == (StoreUnavailable, "STORE_UNAVAILABLE", str(caught.value))
        assert StorageFull("full").code == "STORAGE_FULL"

    def test_many_threads_on_one_sqlite_wait_for_one_another(self, sqlite: Engine) -> None:
        ledger = WholeLedger(sqlite)
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: ledger.submit(SPEC), range(48)))
        assert len(ledger.jobs(limit=100)) == 48


class TestSole:
    def test_one_server_at_a_time(self, tmp_path: Path) -> None:
        with sole(tmp_path / "home"):
            with pytest.raises(UserError, match=r"another server is using .*STILLHOUSE_HOME"), sole(tmp_path / "home"):
                pass
            with sole(tmp_path / "other"):
                pass
        with sole(tmp_path / "home"):
            pass

    def test_the_lock_goes_with_its_process_however_it_ends(self, tmp_path: Path) -> None:
        reader, writer = context.Pipe(duplex=False)
        holder = context.Process(target=hold, args=(tmp_path, writer))
        holder.start()
        assert reader.recv()
        with pytest.raises(UserError), sole(tmp_path):
            pass
        holder.kill()
        holder.join()
        with sole(tmp_path):
            pass


def test_no_event_comes_after_a_number_that_none_has(engine: Engine) -> None:
    ledger = WholeLedger(engine)
    job, _ = ledger.submit(SPEC)
    for after in (1, 2**31 - 1, 2**31, 2**53, 10**15 - 1):
        assert ledger.events(job.id, after=after) == []
    assert len(ledger.events(job.id)) == 1
