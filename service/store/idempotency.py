"""Requests that are carried out once, however often they are sent: what the first of them has made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection, Engine, insert, select
from sqlalchemy.exc import IntegrityError

from search.errors import KeyReused, NotFound
from service.store.engine import reading, writing
from service.store.tables import idempotency, now
from service.store.values import Caller, Once
from workers.rules import key_reused

T = TypeVar("T")


def carry_out(
    engine: Engine,
    caller: Caller,
    once: Once | None,
    new_id: str,
    make: Callable[[Connection], T],
    find: Callable[[Connection, str], T],
) -> tuple[T, bool]:
    """
    What the request asks for, and whether it was made just now.

    `make` makes it under the id `new_id`, in one transaction with the note that this key has made it. When the key came
    before, `find` gives what it made then. Of any number of equal requests at the same time one makes it. A request
    without a key (`once` is None) is carried out each time. Notes are kept for as long as there is a record.

    Raises:
        KeyReused: the key came before with another request, or what it made is not there any more.
    """
    try:
        with writing(engine) as connection:
            if once is not None:
                former = _former(connection, caller, once)
                if former is not None:
                    return _found(connection, former, find), False
                # First of all: an equal request beside this one waits here, before it could spend a quota.
                connection.execute(
                    insert(idempotency).values(
                        tenant=caller.tenant,
                        route=once.route,
                        key=once.key,
                        fingerprint=once.fingerprint,
                        object=new_id,
                        at=now(),
                    )
                )
            return make(connection), True
    except IntegrityError:
        with reading(engine) as connection:
            former = None if once is None else _former(connection, caller, once)
            if former is None:
                raise
            return _found(connection, former, find), False  # an equal request was quicker


def replayed(engine: Engine, caller: Caller, once: Once | None, find: Callable[[Connection, str], T]) -> T | None:
    """
    What this very request has made before; None when it has not come before. For those whose making begins with
    something long.

    Raises:
        KeyReused: as `carry_out` does.
    """
    if once is None:
        return None
    with reading(engine) as connection:
        former = _former(connection, caller, once)
        return None if former is None else _found(connection, former, find)


def _former(connection: Connection, caller: Caller, once: Once) -> str | None:
    """The id of what this key has made, if it came before."""
    row = connection.execute(
        select(idempotency.c.fingerprint, idempotency.c.object).where(
            idempotency.c.tenant == caller.tenant, idempotency.c.route == once.route, idempotency.c.key == once.key
        )
    ).one_or_none()
    if row is None:
        return None
    if row.fingerprint != once.fingerprint:
        raise key_reused(once.key)
    return str(row.object)


def _found(connection: Connection, former: str, find: Callable[[Connection, str], T]) -> T:
    try:
        return find(connection, former)
    except NotFound:
        raise KeyReused(f"this Idempotency-Key has made {former}, which was deleted since; take a new key") from None
