"""A record filled row by row: jobs and trials of every kind, for what only looks at them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Engine, insert

from search.spec import read_spec
from search.trial import State
from service.store.engine import writing
from service.store.tables import jobs, scores, trials
from service.store.values import DEFAULT
from tests.service.served import SPEC
from workers.ports import JobState, Phase

BEGAN = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
METRICS = ("macs", "params", "latency")
SITES = ("layer1.width", "keep")


def put_jobs(engine: Engine, count: int, *, seed: int = 0, tenant: str = DEFAULT) -> list[str]:
    draw, rows = random.Random(seed), list[dict[str, Any]]()
    for number in range(count):
        state = draw.choice(list(JobState))
        began = None if state is JobState.QUEUED else BEGAN + timedelta(seconds=draw.randrange(5))
        labels = {name: draw.choice(("a", "b", "é", "O'Neill")) for name in ("team", "x.y") if draw.random() < 0.6}
        spec = read_spec(SPEC | {"labels": labels, "priority": draw.randrange(-2, 3)})
        rows.append(
            {
                "id": f"job_{seed:013d}{number:013d}",
                "state": state,
                "reason": "",
                "spec": spec.model_dump(mode="json"),
                "priority": spec.priority,
                "created_at": BEGAN + timedelta(microseconds=draw.randrange(4)),
                "started_at": began,
                "ended_at": BEGAN + timedelta(seconds=9) if state.terminal else None,
                "cancel_requested_at": BEGAN if draw.random() < 0.3 else None,
                "phase": None if began is None else draw.choice(list(Phase)),
                "token": 0,
                "claims": draw.randrange(1, 4),
                "fruitless": 0,
                "events": 0,
                "tenant": tenant,
            }
        )
    with writing(engine) as connection:
        connection.execute(insert(jobs), rows)
    return [row["id"] for row in rows]


def put_trials(engine: Engine, job_id: str, count: int, *, seed: int = 0) -> list[str]:
    """Numbers are drawn from few, so that many are equal."""
    draw = random.Random(seed)
    rows, reached = list[dict[str, Any]](), list[dict[str, Any]]()
    for number in range(count):
        trial_id = f"trial_{job_id[-13:]}{number:013d}"
        rows.append(
            {
                "id": trial_id,
                "job_id": job_id,
                "number": number,
                "key": f"key-{number}",
                "choices": {site: draw.choice((4, 8, 16)) for site in SITES},
                "origin": {},
                "cost": {metric: draw.choice((1, 7, 2**40)) for metric in METRICS if draw.random() < 0.8},
                "extra": None,
                "state": draw.choice(list(State)),
                "attempt": draw.randrange(3),
                "reason": "",
            }
        )
        first = draw.choice((0, 40))
        reached += [
            {
                "trial_id": trial_id,
                "rung": rung,
                "step": first + 80 * rung,
                "accuracy": draw.choice((0.0, 0.1, 0.5, 0.9)),
                "kl": draw.choice((0.25, 0.5)),
                "seconds": draw.choice((0.0, 1.5)),
                "at": BEGAN,
                "cached": draw.random() < 0.5,
            }
            for rung in range(draw.randrange(4))
        ]
    with writing(engine) as connection:
        connection.execute(insert(trials), rows)
        if reached:
            connection.execute(insert(scores), reached)
    return [row["id"] for row in rows]
