"""What tests of the HTTP service share: an app over the record in memory, and jobs brought to a state by hand."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.testclient import TestClient

import search.recipe  # noqa: F401 - loads torch while tests are collected, where no clock runs
from search.files import Files
from search.spec import read_spec
from search.trial import Score, Trial
from service.app import create_app
from service.checker import CachedChecker, Checker, DirectChecker
from service.serve import listening_to
from service.settings import Settings
from service.store.figures import CLAIM_BOUNDS, TRIAL_BOUNDS
from service.store.ports import Account, Jobs, Views, Webhooks
from service.store.values import Backlog, Caller, Connections, Figures, Spread, Tally
from service.turnstile import CONNECTIONS
from tests.service.views import MemoryViews
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import Claim, JobState, Phase

HERE = "http://localhost"

SPEC: dict[str, Any] = {
    "teacher": {"name": "small_resnet", "options": {"depth": 1, "width": 8}},
    "dataset": {"name": "digits", "options": {"size": 16}},
    "budget": {"macs": "50%"},
}
WEIGHTS = b"weights of a student"
LIMITS = {"macs": 500, "params": 100}
COST = {"macs": 480, "flops": 960, "params": 60}


class OneTenant:
    """A record without keys: whoever comes in has the jobs of one ledger."""

    def __init__(self, ledger: Any) -> None:
        self._ledger = ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ledger, name)

    def jobs(self, caller: Caller) -> Jobs:
        found: Jobs = self._ledger
        return found

    def views(self, caller: Caller) -> Views:
        return MemoryViews(self._ledger)

    def account(self, caller: Caller) -> Account:
        raise AssertionError("keys and audits are in databases only")

    def figures(self, since: datetime | None, *, reach_seconds: float) -> Figures:
        jobs, nothing = self._ledger.counts(), Spread((0,) * (len(CLAIM_BOUNDS) + 1), 0.0)
        trials = Spread((0,) * (len(TRIAL_BOUNDS) + 1), 0.0)
        tallies = dict.fromkeys(Tally, 0)
        return Figures(jobs, 0.0, (), tallies, datetime.now(UTC), nothing, trials, proposals=0, projected=0)

    def connections(self) -> Connections:
        return Connections(0, 1)

    def webhooks(self, caller: Caller) -> Webhooks:
        raise AssertionError("webhooks are in databases only")

    def latest(self, job_ids: Collection[str]) -> Mapping[str, int]:
        return {job_id: len(self._ledger.events(job_id)) for job_id in job_ids}

    def outbox(self) -> Backlog:
        return Backlog(oldest_seconds=0.0, waiting=0, dead=0)

    def holder(self, secret: str) -> None:
        return None


def make_app(
    home: Path,
    jobs: Jobs | None = None,
    artifacts: MemoryArtifacts | None = None,
    checker: Checker | None = None,
    **settings: Any,
) -> FastAPI:
    """With an `api_key` that key is asked for; without one, nobody is."""
    auth = "keys" if "api_key" in settings else "off"
    return create_app(
        Settings(home=home, **{"auth": auth, **settings}),
        OneTenant(jobs or MemoryLedger()),
        artifacts or MemoryArtifacts(),
        checker or CachedChecker(DirectChecker(Files(home / "cache", settings.get("data_roots", ())))),
        schema_version="memory",
    )


def client_of(app: FastAPI, **options: Any) -> TestClient:
    return TestClient(app, base_url=HERE, raise_server_exceptions=False, **options)


def submitted(ledger: MemoryLedger, **changes: Any) -> str:
    return ledger.submit(read_spec(SPEC | changes))[0].id


def claimed(ledger: MemoryLedger) -> Claim:
    claim = ledger.claim("test", 600)
    assert claim is not None
    return claim


def trial(number: int) -> Trial:
    return Trial(id="", number=0, key=f"key-{number}", choices={"a": number}, origin={"a": number}, cost=COST)


def finish_phase(ledger: MemoryLedger, claim: Claim, phase: Phase, result: dict[str, Any]) -> None:
    ledger.enter(claim, phase)
    ledger.finish(claim, phase, result)


def taught(ledger: MemoryLedger, claim: Claim) -> None:
    """Through the teacher and the survey."""
    finish_phase(
        ledger,
        claim,
        Phase.TEACHER,
        {
            "name": "small_resnet",
            "key": "k",
            "source": "trained",
            "weights": "teachers/k",
            "accuracy": 0.9,
            "validation_accuracy": 0.92,
        },
    )
    cost = {"macs": 1000, "flops": 2000, "params": 200}
    smallest = {"macs": 10, "flops": 20, "params": 5}
    finish_phase(
        ledger,
        claim,
        Phase.SURVEY,
        {"space": "s", "sites": 3, "size": 64.0, "cost": cost, "smallest": smallest, "limits": LIMITS},
    )


def searched(ledger: MemoryLedger, claim: Claim) -> list[str]:
    """Two trials at the first rung, the second promoted to the last; the ids of both."""
    ledger.enter(claim, Phase.SEARCH)
    ids = []
    for number, accuracy in enumerate((0.5, 0.6)):
        opened = ledger.open_trial(claim, trial(number))
        ledger.start_trial(claim, opened.id)
        ledger.score_trial(claim, opened.id, Score(0, 40, accuracy, 0.3, 1.0), last=False)
        ids.append(opened.id)
    ledger.start_trial(claim, ids[1])
    ledger.score_trial(claim, ids[1], Score(1, 120, 0.55, 0.2, 2.0), last=True)
    return ids


def succeeded(ledger: MemoryLedger, artifacts: MemoryArtifacts) -> str:
    """A job brought to its end, with one artifact; its id."""
    submitted(ledger)
    claim = claimed(ledger)
    taught(ledger, claim)
    winner = searched(ledger, claim)[1]
    ledger.finish(claim, Phase.SEARCH, {"finalists": [winner]})
    finish_phase(
        ledger,
        claim,
        Phase.FINALISTS,
        {
            "finalists": [{"trial": winner, "accuracy": 0.88, "kl": 0.12}],
            "winner": winner,
            "accuracy": 0.87,
            "kl": 0.13,
        },
    )
    artifact = artifacts.put(f"jobs/{claim.job_id}/student/weights.safetensors", WEIGHTS)
    ledger.keep(claim, "student/weights.safetensors", artifact, "application/octet-stream")
    finish_phase(
        ledger,
        claim,
        Phase.EXPORT,
        {"trial": winner, "cost": COST, "bytes": len(WEIGHTS), "deviation": {"bundle": 0.0}},
    )
    ledger.close(claim, JobState.SUCCEEDED)
    return claim.job_id


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def listening(app: FastAPI, listener: socket.socket | None = None, connections: int = CONNECTIONS) -> Iterator[str]:
    """The app behind a real server in a thread of this process; its address."""
    with listener or socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as `service.serve` does: 40 ms an answer
        config = listening_to(app, app.state.settings.request_seconds, connections)
        config.timeout_graceful_shutdown = 2
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            app.state.draining.set()
            server.should_exit = True
            thread.join()


def in_threads(count: int, do: Callable[[int], Any]) -> list[Any]:
    """Does it `count` times at once and gives what came back."""
    results: list[Any] = [None] * count
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        gate.wait()
        results[number] = do(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
