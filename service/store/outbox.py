"""
What is to be sent to webhooks. A delivery is put down in the transaction of the event it tells of, so that there is one
if and only if the event is on record; senders take what is due and say what became of it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Row, delete, exists, func, insert, select, update

from service.store.engine import reading, writing
from service.store.tables import deliveries, in_seconds, now, webhooks
from service.store.values import Backlog, Letter
from workers.events import Kind
from workers.ids import new_id

KINDS = frozenset(kind for kind in Kind if kind.startswith("JOB_"))
"""Those events that can be told. What happens to trials is too much for letters: there are streams for it."""
TRIAL_KIND = "WEBHOOK_TEST"
"""Of a delivery that tells of nothing."""
AT_ONCE = 4
"""Attempts at one webhook that may be under way in one sender, so that a slow receiver does not hold up the others."""
_LOOKED_AT, _FORGOTTEN_AT_ONCE = 256, 1000


def post(connection: Connection, job: Row[Any] | SimpleNamespace, seq: int, kind: str, at: datetime) -> None:
    """Puts down one delivery of the event for every webhook of the job's tenant that wants its kind."""
    mine = select(webhooks.c.id, webhooks.c.kinds).where(webhooks.c.tenant == job.tenant, *live())
    wanting = [row.id for row in connection.execute(mine) if kind in row.kinds]
    if not wanting:
        return
    this = f"/v1/jobs/{job.id}"
    links = {"self": this, "events": f"{this}/events", "artifacts": f"{this}/artifacts"}
    data = {"id": job.id, "state": str(job.state), "reason": job.reason, "seq": seq, "links": links}
    body = letter_body(kind, at, data)
    row = {"job_id": job.id, "seq": seq, "kind": kind, "body": body, "attempts": 0, "error": ""}
    rows = [row | {"id": new_id("delivery"), "webhook_id": webhook_id} for webhook_id in wanting]
    connection.execute(insert(deliveries).values(created_at=now(), since=now(), next_at=now()), rows)


def heard(tenant: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether any webhook of the tenant wants to be told of anything."""
    return exists().where(webhooks.c.tenant == tenant, *live())


def live() -> tuple[Any, ...]:
    """Webhooks that are there and want to be told."""
    return webhooks.c.deleted_at.is_(None), webhooks.c.disabled_at.is_(None)


def letter_body(kind: str, at: datetime, data: dict[str, Any]) -> str:
    """JSON in ASCII, so that nobody between here and the receiver has an encoding to guess."""
    return json.dumps({"type": kind, "timestamp": at.isoformat().replace("+00:00", "Z"), "data": data})


def bury_waiting(connection: Connection, webhook_id: str, error: str) -> None:
    """Gives up all that waits for a webhook."""
    waiting = (deliveries.c.webhook_id == webhook_id, deliveries.c.next_at.is_not(None))
    connection.execute(update(deliveries).where(*waiting).values(next_at=None, dead_at=now(), error=error))


def backlog(engine: Engine) -> Backlog:
    waiting = select(func.min(deliveries.c.next_at), func.count(), now()).where(deliveries.c.next_at.is_not(None))
    dead = select(func.count()).select_from(deliveries).where(deliveries.c.dead_at.is_not(None))
    with reading(engine) as connection:
        first, count, moment = connection.execute(waiting).one()
        late = 0.0 if first is None else max((moment - first).total_seconds(), 0.0)
        return Backlog(late, count, connection.execute(dead).scalar_one())


class SqlOutbox:
    """`service.store.ports.Outbox` over a migrated database. Threads may share it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def take(self, limit: int, *, lease_seconds: float, busy: Collection[str] = ()) -> Sequence[Letter]:
        due = (deliveries.c.next_at <= now(), deliveries.c.webhook_id.not_in(busy))
        with reading(self._engine) as connection:
            if connection.execute(select(deliveries.c.id).where(*due).limit(1)).first() is None:
                return []  # an idle sender asks every second and need not lock anything for it
        query = (
            select(deliveries, webhooks.c.url, webhooks.c.secret, webhooks.c.deleted_at, webhooks.c.disabled_at, now())
            .join(webhooks, webhooks.c.id == deliveries.c.webhook_id)
            .where(*due)
            .order_by(deliveries.c.next_at)
            .limit(_LOOKED_AT)
            .with_for_update(of=deliveries, key_share=True, skip_locked=True)
        )
        taken, of_webhook = list[Letter](), Counter[str]()
        with writing(self._engine) as connection:
            for row in connection.execute(query):
                of_webhook[row.webhook_id] += 1
                if of_webhook[row.webhook_id] <= AT_ONCE and len(taken) < limit:
                    taken.append(_letter(row))
            begun = deliveries.c.id.in_([letter.id for letter in taken])
            changes = {"attempts": deliveries.c.attempts + 1, "next_at": in_seconds(lease_seconds)}
            connection.execute(update(deliveries).where(begun).values(changes))
        return taken

    def delivered(self, letter: Letter, status: int) -> None:
        with writing(self._engine) as connection:
            _tell(connection, letter, next_at=None, delivered_at=now(), status=status, error="")

    def failed(self, letter: Letter, status: int | None, error: str, *, again_seconds: float) -> None:
        with writing(self._engine) as connection:
            _tell(connection, letter, next_at=in_seconds(again_seconds), status=status, error=error)

    def give_up(self, letter: Letter, status: int | None, error: str) -> None:
        with writing(self._engine) as connection:
            _tell(connection, letter, next_at=None, dead_at=now(), status=status, error=error)

    def disable(self, letter: Letter, status: int, error: str) -> None:
        this = webhooks.c.id == letter.webhook_id
        with writing(self._engine) as connection:
            # First, as who deletes a webhook does: the other way round the two could wait for one another.
            connection.execute(select(webhooks.c.id).where(this).with_for_update(key_share=True))
            if _tell(connection, letter, next_at=None, dead_at=now(), status=status, error=error):
                connection.execute(update(webhooks).where(this, *live()).values(disabled_at=now()))
                bury_waiting(connection, letter.webhook_id, error)

    def forget(self, older_seconds: float) -> bool:
        old = (deliveries.c.next_at.is_(None), deliveries.c.created_at < in_seconds(-older_seconds))
        some = select(deliveries.c.id).where(*old).limit(_FORGOTTEN_AT_ONCE)
        with reading(self._engine) as connection:
            found = connection.execute(some).scalars().all()
        if found:
            with writing(self._engine) as connection:
                connection.execute(delete(deliveries).where(deliveries.c.id.in_(found), *old))
        return len(found) == _FORGOTTEN_AT_ONCE


def _tell(connection: Connection, letter: Letter, **changes: Any) -> bool:
    """Whether the attempt is still the latest, and the delivery was changed."""
    latest = (deliveries.c.id == letter.id, deliveries.c.attempts == letter.attempt, deliveries.c.next_at.is_not(None))
    return bool(connection.execute(update(deliveries).where(*latest).values(changes)).rowcount)


def _letter(row: Row[Any]) -> Letter:
    return Letter(
        id=row.id,
        webhook_id=row.webhook_id,
        url=row.url,
        secret=row.secret,
        body=row.body,
        attempt=row.attempts + 1,
        waited_seconds=max((row[-1] - row.since) / timedelta(seconds=1), 0.0),
        wanted=row.deleted_at is None and row.disabled_at is None,
    )
