"""The webhooks of one tenant: making and deleting them, and what became of what was sent to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, func, insert, select, tuple_, update

from search.errors import NotFound
from service.signing import new_secret
from service.store import outbox
from service.store.accounts import noted
from service.store.engine import reading, writing
from service.store.idempotency import carry_out
from service.store.tables import deliveries, now, tenants, webhooks
from service.store.values import Caller, Cursor, Delivery, DeliveryState, Once, TooManyWebhooks, Webhook
from workers.ids import new_id

MOST = 20
"""Webhooks of one tenant: each adds a row to the transaction of every event it wants."""


class SqlWebhooks:
    """`service.store.ports.Webhooks` of the caller's tenant. Threads may share it."""

    def __init__(self, engine: Engine, caller: Caller) -> None:
        self._engine, self._caller = engine, caller

    def create(self, url: str, kinds: Sequence[str], *, once: Once | None = None) -> tuple[Webhook, bool]:
        webhook_id = new_id("webhook")
        row = {
            "id": webhook_id,
            "tenant": self._caller.tenant,
            "created_at": now(),
            "url": url,
            "secret": new_secret(),
            "kinds": list(kinds),
        }

        def make(connection: Connection) -> Webhook:
            # Two that are made at the same time must not both be the last.
            mine = select(tenants.c.name).where(tenants.c.name == self._caller.tenant)
            connection.execute(mine.with_for_update(key_share=True))
            count = select(func.count()).select_from(webhooks).where(*self._mine())
            if connection.execute(count).scalar_one() >= MOST:
                raise TooManyWebhooks(f"a tenant has at most {MOST} webhooks; delete one that is not needed any more")
            connection.execute(insert(webhooks).values(row))
            noted(connection, self._caller, "webhooks.create", webhook_id)
            return _webhook(self._find(connection, webhook_id))

        return carry_out(
            self._engine, self._caller, once, webhook_id, make, lambda c, former: _webhook(self._find(c, former))
        )

    def webhook(self, webhook_id: str) -> Webhook:
        with reading(self._engine) as connection:
            return _webhook(self._find(connection, webhook_id))

    def webhooks(self, *, limit: int, before: Cursor | None = None) -> Sequence[Webhook]:
        query = select(webhooks).where(*self._mine())
        if before is not None:
            query = query.where(tuple_(webhooks.c.created_at, webhooks.c.id) < before)
        query = query.order_by(webhooks.c.created_at.desc(), webhooks.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [_webhook(row) for row in connection.execute(query)]

    def delete(self, webhook_id: str) -> None:
        with writing(self._engine) as connection:
            self._find(connection, webhook_id, lock=True)
            connection.execute(update(webhooks).where(webhooks.c.id == webhook_id).values(deleted_at=now()))
            outbox.bury_waiting(connection, webhook_id, "the webhook was deleted")
            noted(connection, self._caller, "webhooks.delete", webhook_id)

    def deliveries(
        self, webhook_id: str, *, limit: int, before: Cursor | None = None, state: DeliveryState | None = None
    ) -> Sequence[Delivery]:
        query = select(deliveries).where(deliveries.c.webhook_id == webhook_id)
        if before is not None:
            query = query.where(tuple_(deliveries.c.created_at, deliveries.c.id) < before)
        match state:
            case DeliveryState.WAITING:
                query = query.where(deliveries.c.next_at.is_not(None))
            case DeliveryState.DELIVERED:
                query = query.where(deliveries.c.delivered_at.is_not(None))
            case DeliveryState.DEAD:
                query = query.where(deliveries.c.dead_at.is_not(None))
        query = query.order_by(deliveries.c.created_at.desc(), deliveries.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            self._find(connection, webhook_id)
            return [_delivery(row) for row in connection.execute(query)]

    def try_out(self, webhook_id: str) -> Delivery:
        delivery_id = new_id("delivery")
        with writing(self._engine) as connection:
            self._find(connection, webhook_id)
            at = connection.execute(select(now())).scalar_one()
            row = {
                "id": delivery_id,
                "webhook_id": webhook_id,
                "kind": outbox.TRIAL_KIND,
                "body": outbox.letter_body(outbox.TRIAL_KIND, at, {"id": webhook_id}),
                "attempts": 0,
                "error": "",
            }
            connection.execute(insert(deliveries).values(created_at=at, since=at, next_at=at, **row))
            noted(connection, self._caller, "webhooks.test", webhook_id)
            return _delivery(_sent(connection, webhook_id, delivery_id))

    def replay(self, webhook_id: str, delivery_id: str) -> Delivery:
        with writing(self._engine) as connection:
            self._find(connection, webhook_id)
            if _sent(connection, webhook_id, delivery_id, lock=True).next_at is None:
                again = {"since": now(), "next_at": now(), "delivered_at": None, "dead_at": None}
                connection.execute(update(deliveries).where(deliveries.c.id == delivery_id).values(again))
                noted(connection, self._caller, "webhooks.replay", delivery_id)
            return _delivery(_sent(connection, webhook_id, delivery_id))

    def _mine(self) -> tuple[Any, ...]:
        return webhooks.c.tenant == self._caller.tenant, webhooks.c.deleted_at.is_(None)

    def _find(self, connection: Connection, webhook_id: str, *, lock: bool = False) -> Row[Any]:
        query = select(webhooks).where(*self._mine(), webhooks.c.id == webhook_id)
        row = connection.execute(query.with_for_update(key_share=True) if lock else query).one_or_none()
        if row is None:
            raise NotFound(f"there is no webhook `{webhook_id[:64]}`")
        return row


def _sent(connection: Connection, webhook_id: str, delivery_id: str, *, lock: bool = False) -> Row[Any]:
    query = select(deliveries).where(deliveries.c.webhook_id == webhook_id, deliveries.c.id == delivery_id)
    row = connection.execute(query.with_for_update(key_share=True) if lock else query).one_or_none()
    if row is None:
        raise NotFound(f"the webhook has no delivery `{delivery_id[:64]}`")
    return row


def _webhook(row: Row[Any]) -> Webhook:
    return Webhook(row.id, row.url, tuple(row.kinds), row.secret, row.created_at, row.disabled_at)


def _delivery(row: Row[Any]) -> Delivery:
    state = DeliveryState.WAITING
    if row.next_at is None:
        state = DeliveryState.DELIVERED if row.delivered_at is not None else DeliveryState.DEAD
    return Delivery(
        id=row.id,
        webhook_id=row.webhook_id,
        kind=row.kind,
        job_id=row.job_id,
        seq=row.seq,
        state=state,
        created_at=row.created_at,
        attempts=row.attempts,
        next_at=row.next_at,
        delivered_at=row.delivered_at,
        dead_at=row.dead_at,
        status=row.status,
        error=row.error,
    )
