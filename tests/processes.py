"""Real processes for tests of the record, begun in milliseconds: a server that has imported everything forks them."""

from __future__ import annotations

import itertools
import multiprocessing
import sys
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from search.files import Files
from search.spec import read_spec
from service.egress import Egress, Gate
from service.postman import Postman
from service.store.engine import connect, migrate, sole
from service.store.outbox import SqlOutbox
from tests.bundles import read_back_here
from tests.databases import WholeLedger
from workers.artifacts import FolderArtifacts
from workers.backends.inline import InlineBackend
from workers.driver import Driver
from workers.heartbeat import Heartbeat

LEASE_SECONDS = 60.0
"""Of a driver: longer than any of these lives."""

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])


def submit_for_ever(url: str, name: str, acknowledged: Connection) -> None:
    """Submits jobs and says each id once the record has taken it."""
    ledger = WholeLedger(connect(url))
    spec = read_spec({"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": {"macs": "50%"}})
    for number in itertools.count():
        job, _ = ledger.submit(spec, idempotency_key=f"{name}-{number}", fingerprint="f")
        acknowledged.send(job.id)


def claim_all(url: str, given: Connection) -> None:
    """Claims jobs until none is left, and says their ids at the end."""
    engine = connect(url)
    ledger, claimed, empty = WholeLedger(engine), [], 0
    while empty < 3:  # others may hold the rows of the last jobs for a moment
        claim = ledger.claim("claimant", 1000)
        if claim is None:
            empty += 1
            time.sleep(0.05)
        else:
            claimed.append(claim.job_id)
    engine.dispose()
    given.send(claimed)


def migrate_once(url: str) -> None:
    engine = connect(url)
    migrate(engine)
    engine.dispose()


def drive(url: str, home: Path) -> None:
    """Claims the one job there is and drives it to its end, as `service.drive` does; its bundle is read back here."""
    read_back_here(pytest.MonkeyPatch())
    engine = connect(url)
    ledger = WholeLedger(engine)
    claim = ledger.claim("driver", LEASE_SECONDS)
    assert claim is not None
    artifacts, files, backend = (
        FolderArtifacts(home / "artifacts"),
        Files(cache=home / "cache"),
        InlineBackend(threads=1),
    )
    with Heartbeat(ledger, claim, lease_seconds=LEASE_SECONDS, stall_seconds=60, lost=sys.exit) as watch:
        Driver(claim, ledger, artifacts, backend, files, watch).drive()
    engine.dispose()


def send(url: str, lease_seconds: float) -> None:
    """Sends what lies in the outbox to receivers on this machine, until it is killed."""
    gate = Gate(["127.0.0.1"], insecure=True)
    outbox = SqlOutbox(connect(url))
    Postman(outbox, lambda: Egress(gate), lease_seconds=lease_seconds, poll_seconds=0.05).run(threading.Event())


def hold(home: Path, held: Connection) -> None:
    """Holds the folder until it is killed."""
    with sole(home):
        held.send(True)
        time.sleep(60)


def migrate_slowly(url: str, at: int, standing: Connection) -> None:
    """Stops for ever at the statement number `at` that makes or changes a table, and says that it is there."""
    engine, count = connect(url), itertools.count(1)

    def before(_c: object, _u: object, statement: str, *_: object) -> None:
        if statement.lstrip().upper().startswith(("CREATE", "ALTER", "INSERT", "UPDATE", "DROP")) and next(count) == at:
            standing.send(at)
            time.sleep(60)

    event.listen(Engine, "before_cursor_execute", before)
    migrate(engine)
