"""A request with a key is carried out once, whatever happens beside it."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, Engine, func, insert, select

from search.errors import KeyReused, NotFound
from service.store.accounts import SqlTenants
from service.store.engine import reading
from service.store.idempotency import carry_out
from service.store.tables import idempotency, now, webhooks
from service.store.values import DEFAULT, Caller, Once, Scope
from tests.service.served import in_threads

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start

CALLER = Caller(DEFAULT, "test", Scope.ADMIN)
ONCE = Once("things.create", "k", "f")


def asked(engine: Engine, new_id: str, once: Once | None = ONCE, caller: Caller = CALLER) -> tuple[str, bool]:
    """Something with an id is made, or found; a webhook serves as well as anything."""

    def make(connection: Connection) -> str:
        row = {"tenant": caller.tenant, "created_at": now(), "url": "", "secret": "", "kinds": []}
        connection.execute(insert(webhooks).values(id=new_id, **row))
        return new_id

    return carry_out(engine, caller, once, new_id, make, found)


def found(connection: Connection, known: str) -> str:
    row = connection.execute(select(webhooks.c.id).where(webhooks.c.id == known)).scalar_one_or_none()
    if row is None:
        raise NotFound("it is gone")
    return str(row)


def test_the_same_key_gives_what_it_made(engine: Engine) -> None:
    assert asked(engine, "wh_1") == ("wh_1", True)
    assert asked(engine, "wh_2") == ("wh_1", False)
    assert asked(engine, "wh_3", None) == ("wh_3", True)
    assert asked(engine, "wh_4", Once("things.create", "other", "f")) == ("wh_4", True)
    assert asked(engine, "wh_5", Once("others.create", "k", "g")) == ("wh_5", True)
    SqlTenants(engine, "test").create("bob")
    assert asked(engine, "wh_6", caller=Caller("bob", "test", Scope.ADMIN)) == ("wh_6", True)


def test_another_request_with_the_same_key_is_refused(engine: Engine) -> None:
    asked(engine, "wh_1")
    with pytest.raises(KeyReused):
        asked(engine, "wh_2", Once("things.create", "k", "other"))


def test_what_is_gone_is_not_made_again(engine: Engine) -> None:
    def gone(connection: Connection, known: str) -> str:
        raise NotFound("it is gone")

    asked(engine, "wh_1")
    with pytest.raises(KeyReused, match="wh_1, which was deleted since"):
        carry_out(engine, CALLER, ONCE, "wh_2", lambda connection: "wh_2", gone)


def test_what_fails_leaves_no_note(engine: Engine) -> None:
    def failing(connection: Connection) -> str:
        raise ValueError("not now")

    with pytest.raises(ValueError, match="not now"):
        carry_out(engine, CALLER, ONCE, "wh_1", failing, found)
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(idempotency)).scalar_one() == 0
    assert asked(engine, "wh_2") == ("wh_2", True)


def test_of_many_equal_requests_at_once_one_makes_it(engine: Engine) -> None:
    answers = in_threads(12, lambda number: asked(engine, f"wh_{number}"))
    assert len({made for made, _ in answers}) == 1
    assert sum(new for _, new in answers) == 1
