"""Tenants and their keys, what they have used, and the audit of what was done."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select, tuple_, update
from sqlalchemy.exc import IntegrityError

from search.errors import NotFound, UserError
from service.store import quotas
from service.store.engine import reading, writing
from service.store.tables import audit, in_seconds, keys, now, tenants
from service.store.values import Caller, Cursor, Entry, Key, Quota, Scope, Share, Tenant
from workers.ids import new_id

PREFIX = "sth_"
"""What every key begins with, so that one which leaked is known for what it is."""
_RANDOM_BYTES = 32
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def digest_of(secret: str) -> str:
    # No slow hash: a key is 256 random bits, and there is no dictionary to try.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


_NEW_ENTRY = insert(audit).values(at=now())


def noted(connection: Connection, caller: Caller, action: str, on: str) -> None:
    """A row in the audit, in the caller's transaction: it is there if and only if what it tells of is."""
    entry = {
        "id": new_id("audit"),
        "tenant": caller.tenant,
        "actor": caller.actor,
        "action": action,
        "object": on,
        "request_id": caller.request_id,
    }
    connection.execute(_NEW_ENTRY, entry)


class SqlAccount:
    """`service.store.ports.Account` of the caller's tenant. Threads may share it."""

    def __init__(self, engine: Engine, caller: Caller) -> None:
        self._engine, self._caller = engine, caller

    def create_key(self, name: str, scope: Scope, lifetime_seconds: int | None = None) -> tuple[Key, str]:
        secret = PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)
        key_id = new_id("key")
        row = {
            "id": key_id,
            "tenant": self._caller.tenant,
            "name": name,
            "scope": scope,
            "digest": digest_of(secret),
            "created_at": now(),
            "expires_at": None if lifetime_seconds is None else in_seconds(lifetime_seconds),
        }
        with writing(self._engine) as connection:
            connection.execute(insert(keys).values(row))
            noted(connection, self._caller, "keys.create", key_id)
            return as_key(self._find(connection, key_id)), secret

    def key(self, key_id: str) -> Key:
        with reading(self._engine) as connection:
            return as_key(self._find(connection, key_id))

    def keys(self, *, limit: int, before: Cursor | None = None) -> Sequence[Key]:
        query = select(keys).where(keys.c.tenant == self._caller.tenant)
        if before is not None:
            query = query.where(tuple_(keys.c.created_at, keys.c.id) < before)
        query = query.order_by(keys.c.created_at.desc(), keys.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [as_key(row) for row in connection.execute(query)]

    def revoke_key(self, key_id: str) -> Key:
        with writing(self._engine) as connection:
            if self._find(connection, key_id, lock=True).revoked_at is None:
                connection.execute(update(keys).where(keys.c.id == key_id).values(revoked_at=now()))
                noted(connection, self._caller, "keys.revoke", key_id)
            return as_key(self._find(connection, key_id))

    def usage(self) -> Mapping[Quota, Share]:
        with reading(self._engine) as connection:
            return quotas.shares(connection, self._caller.tenant)

    def audit(self, *, limit: int, before: Cursor | None = None) -> Sequence[Entry]:
        query = select(audit).where(audit.c.tenant == self._caller.tenant)
        if before is not None:
            query = query.where(tuple_(audit.c.at, audit.c.id) < before)
        query = query.order_by(audit.c.at.desc(), audit.c.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [
                Entry(row.id, row.actor, row.action, row.object, row.request_id, row.at)
                for row in connection.execute(query)
            ]

    def _find(self, connection: Connection, key_id: str, *, lock: bool = False) -> Row[Any]:
        query = select(keys).where(keys.c.tenant == self._caller.tenant, keys.c.id == key_id)
        row = connection.execute(query.with_for_update(key_share=True) if lock else query).one_or_none()
        if row is None:
            raise NotFound(f"there is no key `{key_id[:64]}`")
        return row


class SqlTenants:
    """`service.store.ports.Tenants`, for an operator's shell. Threads may share it."""

    def __init__(self, engine: Engine, actor: str) -> None:
        self._engine, self._actor = engine, actor

    def create(self, name: str) -> tuple[Tenant, bool]:
        if not _NAME.fullmatch(name):
            raise UserError(
                f"`{name[:64]}` cannot be the name of a tenant; write up to 63 of a to z, 0 to 9 and -, not at its ends"
            )
        try:
            with writing(self._engine) as connection:
                former = _tenant_row(connection, name)
                if former is not None:
                    return _tenant(former), False
                connection.execute(insert(tenants).values(name=name, created_at=now()))
                self._note(connection, name, "tenants.create")
                return _tenant(_tenant_row(connection, name)), True
        except IntegrityError:
            with reading(self._engine) as connection:
                return _tenant(_tenant_row(connection, name)), False  # another shell was quicker

    def tenants(self) -> Sequence[Tenant]:
        with reading(self._engine) as connection:
            return [_tenant(row) for row in connection.execute(select(tenants).order_by(tenants.c.name))]

    def holder_of(self, key_id: str) -> str:
        with reading(self._engine) as connection:
            found = connection.execute(select(keys.c.tenant).where(keys.c.id == key_id)).scalar_one_or_none()
        if found is None:
            raise NotFound(f"there is no key `{key_id[:64]}`; `stillhouse keys list` shows those there are")
        return str(found)

    def limit(self, name: str, limits: Mapping[Quota, int | None]) -> Tenant:
        with writing(self._engine) as connection:
            if _tenant_row(connection, name) is None:
                raise NotFound(f"there is no tenant `{name[:64]}`; `stillhouse tenants list` shows those there are")
            if limits:
                changes = {str(quota): limit for quota, limit in limits.items()}
                connection.execute(update(tenants).where(tenants.c.name == name).values(changes))
                self._note(connection, name, "tenants.limits")
            return _tenant(_tenant_row(connection, name))

    def _note(self, connection: Connection, name: str, action: str) -> None:
        noted(connection, Caller(name, self._actor, Scope.ADMIN), action, name)


def _tenant_row(connection: Connection, name: str) -> Row[Any] | None:
    return connection.execute(select(tenants).where(tenants.c.name == name)).one_or_none()


def _tenant(row: Row[Any] | None) -> Tenant:
    assert row is not None  # noqa: S101 - tenants are never taken out, and this one was seen
    return Tenant(row.name, row.created_at, quotas.limits_of(row))


def as_key(row: Row[Any]) -> Key:
    return Key(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        scope=Scope(row.scope),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
    )
