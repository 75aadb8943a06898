"""The record in SQL, as the service sees it: the way to each tenant's part, and what concerns all of them."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Engine, bindparam, inspect, or_, select, text, update

from search.errors import StoreUnavailable
from service.store.accounts import SqlAccount, as_key, digest_of
from service.store.engine import connections, current_revision, reading, writing
from service.store.figures import SETTLED_SECONDS, figures
from service.store.jobs import SqlJobs
from service.store.outbox import backlog
from service.store.register import SqlRegister
from service.store.tables import in_seconds, jobs, keys, now, tenants
from service.store.uploads import SqlUploads
from service.store.values import Backlog, Caller, Connections, Figures, Key
from service.store.views import Known, SqlViews
from service.store.webhooks import SqlWebhooks

logger = logging.getLogger("stillhouse.record")

USE_NOTED_SECONDS = 60
"""A key's latest use is on record to that precision, so that reading does not write each time."""


class SqlRecord:
    """`service.store.ports.Record` over a migrated database. Threads may share it."""

    def __init__(self, engine: Engine, *, settled_seconds: float = SETTLED_SECONDS) -> None:
        self._engine, self._settled, self._known = engine, settled_seconds, Known()

    def jobs(self, caller: Caller) -> SqlJobs:
        return SqlJobs(self._engine, caller, self._known)

    def views(self, caller: Caller) -> SqlViews:
        return SqlViews(self._engine, caller, self._known)

    def account(self, caller: Caller) -> SqlAccount:
        return SqlAccount(self._engine, caller)

    def webhooks(self, caller: Caller) -> SqlWebhooks:
        return SqlWebhooks(self._engine, caller)

    def latest(self, job_ids: Collection[str]) -> Mapping[str, int]:
        query = select(jobs.c.id, jobs.c.events).where(jobs.c.id.in_(job_ids))
        with reading(self._engine) as connection:
            return {row.id: row.events for row in connection.execute(query)}

    def outbox(self) -> Backlog:
        return backlog(self._engine)

    def uploads(self, caller: Caller) -> SqlUploads:
        return SqlUploads(self._engine, caller)

    def teachers(self, caller: Caller) -> SqlRegister:
        return SqlRegister(self._engine, caller, "teachers")

    def datasets(self, caller: Caller) -> SqlRegister:
        return SqlRegister(self._engine, caller, "datasets")

    def has_keys(self) -> bool:
        """Whether anybody could come in with a key that is on record; false where there are no tables yet."""
        with reading(self._engine) as connection:
            if not inspect(connection).has_table(keys.name):
                return False
            return connection.execute(select(keys.c.id).where(*_usable()).limit(1)).first() is not None

    def holder(self, secret: str) -> Key | None:
        digest = digest_of(secret)
        with reading(self._engine, once=True) as connection:
            found = connection.execute(_HELD, {"digest": digest}).one_or_none()
        if found is None or not hmac.compare_digest(found.digest, digest):
            return None
        if found.last_used_at is None or found.now - found.last_used_at > timedelta(seconds=USE_NOTED_SECONDS):
            self._note_use(found.id)
        return as_key(found)

    def _note_use(self, key_id: str) -> None:
        stale = or_(keys.c.last_used_at.is_(None), keys.c.last_used_at < in_seconds(-USE_NOTED_SECONDS))
        try:
            with writing(self._engine) as connection:
                connection.execute(update(keys).where(keys.c.id == key_id, stale).values(last_used_at=now()))
        except StoreUnavailable as error:
            logger.warning("that the key %s was used is not on record: %s", key_id, error)  # it may read all the same

    def has_tenant(self, name: str) -> bool:
        with reading(self._engine) as connection:
            return connection.execute(select(tenants.c.name).where(tenants.c.name == name)).first() is not None

    def figures(self, since: datetime | None, *, reach_seconds: float) -> Figures:
        with reading(self._engine) as connection:
            return figures(connection, since, reach_seconds, self._settled)

    def connections(self) -> Connections:
        return connections(self._engine)

    def ping(self) -> None:
        with reading(self._engine) as connection:
            connection.execute(text("SELECT 1"))

    def schema_version(self) -> str | None:
        return current_revision(self._engine)


def _usable() -> tuple[ColumnElement[bool], ...]:
    return keys.c.revoked_at.is_(None), or_(keys.c.expires_at.is_(None), keys.c.expires_at > now())


_HELD = select(keys, now().label("now")).where(keys.c.digest == bindparam("digest"), *_usable())
