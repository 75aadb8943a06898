"""The database goes away in the middle: every write happens whole or not at all, and may be asked for again."""

from __future__ import annotations

import itertools
import signal
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.exc import OperationalError

from search.errors import StoreUnavailable
from search.spec import read_spec
from search.trial import Score, State, Trial
from service.store.engine import connect, migrate
from service.store.outbox import SqlOutbox
from service.store.values import DeliveryState, Scope
from tests.databases import WholeLedger
from tests.processes import context, submit_for_ever
from workers.ports import Artifact, Claim, JobState, Phase

SPEC = read_spec(
    {"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": {"macs": "50%"}, "resources": {"attempts": 1}}
)
PROPOSAL = Trial("", 0, "b", {"site": 1}, {"site": 2}, {"macs": 3})
SCORE = Score(0, 10, 0.5, 0.1, 1.0)
FILE = Artifact("jobs/1/student.onnx", 12, "0" * 64)

Write = Callable[[WholeLedger, Claim, str], object]
WRITES: dict[str, Write] = {
    "submit": lambda ledger, claim, trial: ledger.submit(SPEC, idempotency_key="other", fingerprint="f"),
    "request_cancel": lambda ledger, claim, trial: ledger.request_cancel(claim.job_id),
    "request_cancel of a queued job": lambda ledger, claim, trial: ledger.request_cancel(queued(ledger)),
    "create_key": lambda ledger, claim, trial: ledger.account.create_key("another", Scope.READ),
    "revoke_key": lambda ledger, claim, trial: ledger.account.revoke_key(ledger.account.keys(limit=1)[0].id),
    "webhooks.create": lambda ledger, claim, trial: ledger.webhooks.create("https://hooks.example.org/2", ENDS),
    "webhooks.delete": lambda ledger, claim, trial: ledger.webhooks.delete(hook(ledger)),
    "webhooks.test": lambda ledger, claim, trial: ledger.webhooks.try_out(hook(ledger)),
    "webhooks.replay": lambda ledger, claim, trial: ledger.webhooks.replay(hook(ledger), dead(ledger)),
    "claim": lambda ledger, claim, trial: ledger.claim("other", 1000),
    "claim of a poisonous job": lambda ledger, claim, trial: ledger.claim("other", 1000),
    "renew": lambda ledger, claim, trial: ledger.renew(claim, 1000),
    "release": lambda ledger, claim, trial: ledger.release(claim),
    "enter": lambda ledger, claim, trial: ledger.enter(claim, Phase.FINALISTS),
    "finish": lambda ledger, claim, trial: ledger.finish(claim, Phase.SEARCH, {"finalists": []}),
    "note": lambda ledger, claim, trial: ledger.note(claim, "PROGRESS", {"done": 1}),
    "close": lambda ledger, claim, trial: ledger.close(claim, JobState.SUCCEEDED),
    "keep": lambda ledger, claim, trial: ledger.keep(claim, "student.onnx", FILE, "application/octet-stream"),
    "open_trial": lambda ledger, claim, trial: ledger.open_trial(claim, PROPOSAL),
    "score_trial": lambda ledger, claim, trial: ledger.score_trial(claim, trial, SCORE, last=True),
    "return_trial": lambda ledger, claim, trial: ledger.return_trial(claim, trial, "the worker died"),
    "close_trial": lambda ledger, claim, trial: ledger.close_trial(claim, trial, State.STOPPED),
}
REPEATABLE = ["submit", "request_cancel", "renew", "release", "finish", "open_trial", "score_trial"]
"""Those whose repetition, after a commit whose answer was lost, changes nothing."""


ENDS = ("JOB_SUCCEEDED", "JOB_FAILED", "JOB_CANCELLED")


def hook(ledger: WholeLedger) -> str:
    return ledger.webhooks.webhooks(limit=10)[-1].id


def dead(ledger: WholeLedger) -> str:
    return ledger.webhooks.deliveries(hook(ledger), limit=1, state=DeliveryState.DEAD)[0].id


def queued(ledger: WholeLedger) -> str:
    return next(job.id for job in ledger.jobs(limit=10) if job.state is JobState.QUEUED)


def prepared(engine: Engine) -> tuple[WholeLedger, Claim, str]:
    """
    A claimed job in its search, its lease over, with a running trial; another job in the queue; a webhook that is told
    of all jobs, and could not be told of the first.
    """
    ledger = WholeLedger(engine)
    ledger.webhooks.create("https://hooks.example.org/1", ["JOB_QUEUED", "JOB_CLAIMED", *ENDS])
    ledger.submit(SPEC.model_copy(update={"priority": 1}))
    outbox = SqlOutbox(engine)
    for letter in outbox.take(10, lease_seconds=1000):
        outbox.give_up(letter, 500, "the receiver answered 500")
    claim = ledger.claim("victim", 0)
    assert claim is not None
    ledger.enter(claim, Phase.SEARCH)
    trial = ledger.start_trial(claim, ledger.open_trial(claim, replace(PROPOSAL, key="a")).id)
    ledger.submit(SPEC)
    ledger.account.create_key("the first", Scope.ADMIN)
    return ledger, claim, trial.id


def everything(ledger: WholeLedger) -> list[object]:
    account = ledger.account
    told = [(job, ledger.trials(job.id), ledger.events(job.id)) for job in ledger.jobs(limit=100)]
    hooks = ledger.webhooks.webhooks(limit=100)
    letters = [ledger.webhooks.deliveries(webhook.id, limit=100) for webhook in hooks]
    return [*told, account.keys(limit=100), account.audit(limit=100), hooks, letters]


@contextmanager
def failing(engine: Engine, at: int) -> Iterator[list[str]]:
    """The statement number `at` that changes something, counted from 0, fails; yields those that got through."""
    through: list[str] = []

    def before(_c: object, _u: object, statement: str, *_: object) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            if len(through) == at:
                failure = sqlite3.OperationalError("disk I/O error")
                failure.sqlite_errorname = "SQLITE_IOERR_WRITE"
                raise OperationalError(statement, {}, failure)
            through.append(statement)

    event.listen(engine, "before_cursor_execute", before)
    try:
        yield through
    finally:
        event.remove(engine, "before_cursor_execute", before)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", WRITES)
def test_a_write_that_fails_at_any_statement_leaves_nothing(name: str, sqlite: Engine) -> None:
    ledger, claim, trial = prepared(sqlite)
    if "poisonous" in name:
        ledger.request_cancel(queued(ledger))
        ledger.claim("second victim", 0)
    before = everything(ledger)
    statements = 0
    while True:
        with failing(sqlite, at=statements) as through:
            try:
                WRITES[name](ledger, claim, trial)
            except StoreUnavailable:
                assert everything(ledger) == before, f"left by {through}"
                statements += 1
                continue
        break
    assert statements >= (1 if name in ("renew", "release") else 2)
    if name not in ("renew", "release"):
        assert everything(ledger) != before


@contextmanager
def answers_lost(engine: Engine) -> Iterator[None]:
    """Transactions are committed, but who asked hears that the database was not there."""

    def after(*_: object) -> None:
        failure = sqlite3.OperationalError("disk I/O error")
        failure.sqlite_errorname = "SQLITE_IOERR"
        raise OperationalError("COMMIT", {}, failure)

    dialect = engine.dialect
    commit = dialect.do_commit

    def commit_and_fail(connection: object) -> None:
        commit(connection)  # type: ignore[arg-type]
        after()

    dialect.do_commit = commit_and_fail  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        dialect.do_commit = commit  # type: ignore[method-assign]


@pytest.mark.parametrize("name", REPEATABLE)
def test_a_write_whose_answer_was_lost_may_be_repeated(name: str, sqlite: Engine) -> None:
    ledger, claim, trial = prepared(sqlite)
    with answers_lost(sqlite), pytest.raises(StoreUnavailable):
        WRITES[name](ledger, claim, trial)
    written = everything(ledger)
    WRITES[name](ledger, claim, trial)
    assert everything(ledger) == written


@pytest.mark.timeout(60)
def test_what_was_acknowledged_survives_kills(tmp_path: Path) -> None:
    """A process that submits and prints is killed ten times; all that it printed is there, and nothing by halves."""
    url = f"sqlite:///{tmp_path / 'record.db'}"
    engine = connect(url)
    migrate(engine)
    acknowledged: list[str] = []
    for kill in range(10):
        reader, writer = context.Pipe(duplex=False)
        submitter = context.Process(target=submit_for_ever, args=(url, str(kill), writer))
        submitter.start()
        writer.close()
        with suppress(EOFError):
            for count in itertools.count():
                acknowledged.append(reader.recv())
                if count == 10 + kill:
                    submitter.kill()
        submitter.join()
        reader.close()
        assert submitter.exitcode == -signal.SIGKILL
    assert len(acknowledged) >= 10 * 11

    ledger = WholeLedger(engine)
    jobs = {job.id for job in ledger.jobs(limit=10_000)}
    assert set(acknowledged) <= jobs
    for job_id in jobs:
        assert [(event.seq, event.kind) for event in ledger.events(job_id)] == [(1, "JOB_QUEUED")]
    engine.dispose()
    with closing(sqlite3.connect(tmp_path / "record.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
