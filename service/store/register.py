"""Teachers and datasets that a tenant has registered: what stands in a job for each, and what was found at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sqlalchemy import Connection, Engine, Row, insert, select, tuple_, update

from search.errors import NotFound
from service.store.accounts import noted
from service.store.engine import reading, writing
from service.store.idempotency import carry_out, replayed
from service.store.tables import datasets, now, teachers
from service.store.uploads import hold
from service.store.values import Caller, Cursor, Once, Registered
from workers import rules
from workers.ids import new_id

Shelf = Literal["teachers", "datasets"]
_TABLES = {"teachers": teachers, "datasets": datasets}
_PREFIXES = {"teachers": "tch", "datasets": "ds"}


class SqlRegister:
    """`service.store.ports.Register` of the caller's tenant. Threads may share it."""

    def __init__(self, engine: Engine, caller: Caller, shelf: Shelf) -> None:
        self._engine, self._caller, self._shelf, self._table = engine, caller, shelf, _TABLES[shelf]

    def create(
        self, name: str, spec: Mapping[str, Any], facts: Mapping[str, Any], once: Once | None = None
    ) -> tuple[Registered, bool]:
        registered_id = new_id(_PREFIXES[self._shelf])
        row: dict[str, Any] = {"id": registered_id, "tenant": self._caller.tenant, "name": name}
        row |= {"spec": rules.plain(spec), "facts": rules.plain(facts), "created_at": now()}

        def make(connection: Connection) -> Registered:
            upload = {"upload": hold(connection, self._caller.tenant, spec)} if self._shelf == "teachers" else {}
            connection.execute(insert(self._table).values(row | upload))
            noted(connection, self._caller, f"{self._shelf}.create", registered_id)
            return self._given(connection, registered_id)

        return carry_out(self._engine, self._caller, once, registered_id, make, self._given)

    def replay(self, once: Once | None) -> Registered | None:
        return replayed(self._engine, self._caller, once, self._given)

    def get(self, registered_id: str) -> Registered:
        with reading(self._engine) as connection:
            return self._given(connection, registered_id)

    def list(self, *, limit: int, before: Cursor | None = None) -> Sequence[Registered]:
        mine = self._table.c
        query = select(self._table).where(mine.tenant == self._caller.tenant, mine.deleted_at.is_(None))
        if before is not None:
            query = query.where(tuple_(mine.created_at, mine.id) < before)
        query = query.order_by(mine.created_at.desc(), mine.id.desc()).limit(limit)
        with reading(self._engine) as connection:
            return [_registered(row) for row in connection.execute(query)]

    def delete(self, registered_id: str) -> None:
        with writing(self._engine) as connection:
            self._given(connection, registered_id, lock=True)
            gone = update(self._table).where(self._table.c.id == registered_id)
            connection.execute(gone.values(deleted_at=now()))
            noted(connection, self._caller, f"{self._shelf}.delete", registered_id)

    def _given(self, connection: Connection, registered_id: str, *, lock: bool = False) -> Registered:
        mine = self._table.c
        query = select(self._table).where(mine.tenant == self._caller.tenant, mine.id == registered_id)
        query = query.where(mine.deleted_at.is_(None))
        row = connection.execute(query.with_for_update(key_share=True) if lock else query).one_or_none()
        if row is None:
            raise NotFound(f"there is no {self._shelf.removesuffix('s')} `{registered_id[:64]}`")
        return _registered(row)


def _registered(row: Row[Any]) -> Registered:
    return Registered(row.id, row.name, row.spec, row.facts, row.created_at)
