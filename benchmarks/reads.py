"""
What it takes to look at a large record: 10,000 jobs, 340,000 trials and 1,000,000 scores, one job with 10,000 trials.

    python -m benchmarks.reads [sqlite] [postgres] [--clients N] [--requests N]

The record is filled row by row without training anything. Then a server of its own process answers requests over HTTP,
and what is timed is the whole answer as its client has it. Without a name both databases are measured, Postgres where
its binaries are there.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2
from sqlalchemy import Engine, Table, select, text

from benchmarks.served import AUTHORIZED, serving
from search.spec import read_spec
from service.examples import JOB, SPEC
from service.store.engine import connect, migrate
from service.store.rows import records
from service.store.standings import keep
from service.store.tables import events, jobs, logs, phases, scores, trials
from service.store.values import DEFAULT
from tests.databases import new_postgres

JOBS, TRIALS, RUNGS, LARGE = 10_000, 33, 3, 10_000
SITES = 20
BEGAN = 1_767_600_000_000_000
"""Microseconds since 1970."""
_SECOND = 1_000_000
_STATES = ("SUCCEEDED",) * 90 + ("FAILED",) * 6 + ("QUEUED", "PREPARING", "RUNNING", "FINALIZING")


@dataclass(frozen=True)
class Question:
    name: str
    ask: Callable[[random.Random], tuple[str, dict[str, Any]]]


def job_id(number: int) -> str:
    return f"job_{number:026d}"


def trial_id(job: int, number: int) -> str:
    return f"trial_{job:013d}{number:013d}"


def fill(engine: Engine) -> None:
    draw = random.Random(0)
    _put(engine, jobs, (_job(number, draw) for number in range(JOBS)))
    _put(engine, phases, (row for number in range(JOBS) for row in _phases(number)))
    _put(engine, trials, (_trial(job, number, draw) for job in range(JOBS) for number in range(_count(job))))
    _put(engine, scores, _scores(draw))
    _put(engine, events, _events())
    _put(engine, logs, (_line(0, seq) for seq in range(1, 10_001)))
    with engine.begin() as connection:
        connection.execute(text("ANALYZE"))
    for start in range(0, JOBS, 500):
        ids = [job_id(number) for number in range(start, start + 500)]
        with engine.begin() as connection:
            ended = connection.execute(select(jobs).where(jobs.c.id.in_(ids), jobs.c.ended_at.is_not(None)))
            keep(connection, records(connection, ended.all()))


def _count(job: int) -> int:
    return LARGE if job == 0 else TRIALS


def _state(job: int) -> str:
    return "SUCCEEDED" if job == 0 else _STATES[job % len(_STATES)]


def _job(number: int, draw: random.Random) -> dict[str, Any]:
    state, at = _state(number), BEGAN + number * _SECOND
    spec = read_spec(SPEC | {"labels": {"team": f"team-{number % 50}", "owner": f"person-{number % 400}"}})
    ended = at + 130 * _SECOND if state in ("SUCCEEDED", "FAILED", "CANCELLED") else None
    return {
        **{column.name: None for column in jobs.columns},
        **{"id": job_id(number), "state": state, "reason": "", "spec": spec.model_dump(mode="json")},
        **{"priority": draw.randrange(-5, 6), "created_at": at, "token": 1, "claims": 1, "fruitless": 0, "revision": 0},
        **{
            "events": 0,
            "tenant": DEFAULT,
            "started_at": at,
            "ended_at": ended,
            "phase": "export" if ended else "search",
        },
    }


def _phases(job: int) -> Iterator[dict[str, Any]]:
    """Results as a finished job has them, with finalists among its trials."""
    cost, winner = JOB["best"]["cost"], trial_id(job, 1)
    results: dict[str, Any] = {
        "teacher": {
            **{"name": "small_resnet", "key": "k", "source": "kept", "weights": "teachers/k"},
            **{"accuracy": 0.94, "validation_accuracy": 0.94},
        },
        "survey": {
            **{"space": "s", "sites": SITES, "size": 1e7, "cost": JOB["teacher"]["cost"], "smallest": cost},
            "limits": {"macs": 5_000_000, "params": 200_000},
        },
        "search": {"finalists": [winner, trial_id(job, 2)]},
        "finalists": {
            "finalists": [{"trial": trial_id(job, one), "accuracy": 0.93, "kl": 0.1} for one in (1, 2)],
            **{"winner": winner, "accuracy": 0.93, "kl": 0.1},
        },
        "export": {"trial": winner, "cost": cost, "bytes": 489_212, "deviation": {"bundle": 0.0}},
    }
    for place, (phase, result) in enumerate(results.items()):
        if _state(job) != "SUCCEEDED" and phase not in ("teacher", "survey"):
            return
        at = BEGAN + (job + 20 * place) * _SECOND
        yield {"job_id": job_id(job), "phase": phase, "started_at": at, "ended_at": at + 9 * _SECOND, "result": result}


def _trial(job: int, number: int, draw: random.Random) -> dict[str, Any]:
    macs = draw.randrange(800_000, 5_000_000)
    choices = {f"layer{site // 5}.{site % 5}.width": draw.choice((4, 8, 12, 16)) for site in range(SITES)}
    return {
        **{"id": trial_id(job, number), "job_id": job_id(job), "number": number, "key": f"key-{number}"},
        **{"choices": choices, "origin": choices, "extra": None, "attempt": 0, "reason": ""},
        "cost": {"macs": macs, "flops": 2 * macs, "params": macs // 40},
        "state": draw.choice(("COMPLETED", "STOPPED", "STOPPED", "FAILED")),
    }


def _scores(draw: random.Random) -> Iterator[dict[str, Any]]:
    for job in range(JOBS):
        for number in range(_count(job)):
            for rung in range(RUNGS if job else 1 + (number % 4 == 0)):
                yield {
                    **{"trial_id": trial_id(job, number), "rung": rung, "step": 40 * 3**rung, "seconds": 2.5},
                    **{"accuracy": draw.random(), "kl": draw.random(), "cached": False, "at": BEGAN + number * _SECOND},
                }


def _events() -> Iterator[dict[str, Any]]:
    """Of the large job: a beginning, two signs of life and an end for every score."""
    told: list[tuple[str, dict[str, Any]]] = []
    for number in range(LARGE):
        named = {"trial": trial_id(0, number), "number": number}
        for rung in range(1 + (number % 4 == 0)):
            told.append(("TRIAL_STARTED", {**named, "rung": rung, "attempt": 1}))
            told += [("PROGRESS", {"phase": "search", "trial": number, "step": step, "loss": 0.5}) for step in (10, 20)]
            last = {"rung": rung, "step": 40, "accuracy": 0.5, "kl": 0.2, "cached": False, "last": bool(rung)}
            told.append(("TRIAL_SCORED", {**named, **last, "worker": f"node-{number % 16}:1"}))
    for seq, (kind, data) in enumerate(told, start=1):
        yield {"job_id": job_id(0), "seq": seq, "kind": kind, "data": data, "at": BEGAN + seq * _SECOND}


def _line(job: int, seq: int) -> dict[str, Any]:
    level = "WARNING" if seq % 50 == 0 else "INFO"
    named = {"job_id": job_id(job), "seq": seq, "at": BEGAN + seq, "level": level, "logger": "stillhouse.session"}
    return {**named, "trial": None, "message": f"what line {seq} says of it"}


def _put(engine: Engine, table: Table, rows: Iterator[dict[str, Any]]) -> None:
    """As fast as each database takes them: a million rows one statement each would take most of an hour."""
    names = [column.name for column in table.columns]
    listed = ", ".join(names)
    as_json = {column.name for column in table.columns if column.type.__class__.__name__ == "JSON"}
    values = (
        tuple(json.dumps(row[name]) if name in as_json and row[name] is not None else row[name] for name in names)
        for row in rows
    )
    raw = engine.raw_connection()
    try:
        cursor = raw.cursor()
        if engine.dialect.name == "postgresql":
            cursor.execute("SET statement_timeout = 0")
            with cursor.copy(f"COPY {table.name} ({listed}) FROM STDIN") as copy:  # type: ignore[attr-defined]
                for value in values:
                    copy.write_row(value)
        else:
            cursor.execute("BEGIN")
            marks = ", ".join("?" * len(names))
            cursor.executemany(f"INSERT INTO {table.name} ({listed}) VALUES ({marks})", values)  # noqa: S608 - our tables
            cursor.execute("COMMIT")
        raw.commit()
    finally:
        raw.close()


def _any_job(draw: random.Random) -> int:
    return draw.randrange(1, JOBS)


def _of_job(name: str, path: str = "", **params: Any) -> Question:
    return Question(name, lambda draw: (f"/v1/jobs/{job_id(_any_job(draw))}{path}", params))


def _of_large(name: str, path: str = "", **params: Any) -> Question:
    return Question(name, lambda draw: (f"/v1/jobs/{job_id(0)}{path}", params))


def _team(draw: random.Random) -> tuple[str, dict[str, Any]]:
    return "/v1/jobs", {"filter": f'labels.team = "team-{draw.randrange(50)}"'}


def _one_trial(path: str, job: int | None = None) -> Callable[[random.Random], tuple[str, dict[str, Any]]]:
    def ask(draw: random.Random) -> tuple[str, dict[str, Any]]:
        mine = _any_job(draw) if job is None else job
        return f"/v1/jobs/{job_id(mine)}/trials/{trial_id(mine, draw.randrange(_count(mine)))}{path}", {}

    return ask


def questions(deep: str) -> Sequence[Question]:
    """`deep` is the token of a page far down the list."""
    return (
        Question("jobs, newest 50", lambda draw: ("/v1/jobs", {})),
        Question("jobs, page 100", lambda draw: ("/v1/jobs", {"page_token": deep})),
        Question("jobs, state=RUNNING", lambda draw: ("/v1/jobs", {"state": "RUNNING"})),
        Question("jobs, filter by label", _team),
        Question("jobs, order_by priority", lambda draw: ("/v1/jobs", {"order_by": "priority desc, ended_at"})),
        _of_job("job"),
        _of_job("trials, 33", "/trials"),
        _of_job("trials, filter and order", "/trials", filter="macs < 3e6", order_by="accuracy desc"),
        Question("trial", _one_trial("")),
        Question("curve", _one_trial("/curve")),
        _of_job("pareto", "/pareto"),
        _of_job("sensitivity", "/sensitivity"),
        _of_job("timeline", "/timeline"),
        _of_job("events", "/events"),
        _of_job("logs", "/logs"),
    )


PAGE = (
    _of_large("job"),
    _of_large("trials, best 50", "/trials", order_by="rung desc, accuracy desc"),
    _of_large("trials, filter", "/trials", filter="macs < 1e6 AND NOT state = FAILED"),
    Question("trial", _one_trial("", 0)),
    Question("curve", _one_trial("/curve", 0)),
    _of_large("pareto", "/pareto"),
    _of_large("sensitivity", "/sensitivity"),
    _of_large("timeline", "/timeline"),
    _of_large("events, 1,000", "/events"),
    _of_large("logs, 1,000", "/logs"),
    _of_large("logs, warnings", "/logs", level="WARNING"),
)
"""What a dashboard shows of the large job."""


def timed(url: str, question: Question, clients: int, requests: int) -> list[float]:
    """Seconds of every answer."""
    seconds: list[float] = []

    def go(seed: int) -> None:
        draw = random.Random(seed)
        with httpx2.Client(base_url=url, timeout=60, headers=AUTHORIZED) as http:
            for number in range(requests // clients + 3):
                path, params = question.ask(draw)
                began = time.perf_counter()
                answer = http.get(path, params=params)
                took = time.perf_counter() - began
                assert answer.status_code == 200, answer.text
                if number >= 3:  # connections are opened, and plans made
                    seconds.append(took)

    threads = [threading.Thread(target=go, args=(seed,)) for seed in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds


def measure(url: str, clients: int, requests: int) -> Mapping[str, tuple[float, float]]:
    with httpx2.Client(base_url=url, timeout=60, headers=AUTHORIZED) as http:
        token = ""
        for _ in range(5):
            token = http.get("/v1/jobs", params={"page_size": 1000, "page_token": token}).json()["next_page_token"]
    found = {}
    for many, asked in ((requests, questions(token)), (max(requests // 5, 20), PAGE)):
        for question in asked:
            seconds = timed(url, question, clients, many)
            name = f"large job: {question.name}" if asked is PAGE else question.name
            found[name] = (1000 * median(seconds), 1000 * quantiles(seconds, n=100, method="inclusive")[98])
            print(f"  {name:32} p50 {found[name][0]:7.1f} ms   p99 {found[name][1]:7.1f} ms", flush=True)
    whole = sum(found[f"large job: {question.name}"][0] for question in PAGE)
    print(f"  {'all of the large job, one by one':32} p50 {whole:7.1f} ms")
    return found


@contextmanager
def databases(name: str, home: Path) -> Iterator[str]:
    if name == "sqlite":
        yield f"sqlite:///{home}/record.db"
        return
    database = new_postgres()
    try:
        database.start()
        yield database.url
    finally:
        database.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["sqlite", "postgres"], metavar="sqlite | postgres")
    parser.add_argument("--clients", type=int, default=2)
    parser.add_argument("--requests", type=int, default=200, help="of each kind")
    given = parser.parse_args()
    for name in given.names:
        with tempfile.TemporaryDirectory() as folder, databases(name, Path(folder)) as url:
            engine = connect(url)
            migrate(engine)
            began = time.monotonic()
            fill(engine)
            engine.dispose()
            print(f"{name}: filled in {time.monotonic() - began:.0f} s; {given.clients} clients", flush=True)
            with serving(url, Path(folder)) as server:
                measure(server.url, given.clients, given.requests)


if __name__ == "__main__":
    main()
