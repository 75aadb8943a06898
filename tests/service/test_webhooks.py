"""Webhooks: what is put down with an event, what becomes of it, and what users see of that."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, event, update
from starlette.testclient import TestClient
from typer.testing import CliRunner

from search.spec import read_spec
from service import serve
from service.app import create_app
from service.cli import app as cli
from service.client import Client
from service.egress import SECONDS, Egress, Gate
from service.postman import FIRST_PAUSE, KEPT_SECONDS, LONGEST_PAUSE, PATIENCE, Postman, pause
from service.schemas import WebhookRequest
from service.settings import InvalidSettings, Settings, read_settings
from service.signing import headers_of, new_secret, verify
from service.store.engine import latest_revision, writing
from service.store.outbox import AT_ONCE, KINDS, SqlOutbox
from service.store.record import SqlRecord
from service.store.tables import deliveries, in_seconds
from service.store.values import Caller, Delivery, DeliveryState, Scope, TooManyWebhooks, Webhook
from service.store.webhooks import MOST
from service.terminal import Exit
from service.wire import Invalid, NotFound
from tests.databases import OPERATOR, WholeLedger
from tests.processes import context, send
from tests.service.receiver import Receiver, answer, answers_at, free_port, receiving, silence, wait_until
from tests.service.served import client_of, listening
from tests.service.test_tenancy import Willing
from workers.events import Kind
from workers.memory import MemoryArtifacts
from workers.ports import JobState

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start

SPEC = read_spec({"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": {"macs": "50%"}})
KEY = "k" * 32


def subscribed(ledger: WholeLedger, receiver: Receiver, *kinds: str) -> Webhook:
    return ledger.webhooks.create(receiver.url, kinds or ("JOB_QUEUED",))[0]


def sent(ledger: WholeLedger, webhook: Webhook) -> list[Delivery]:
    """Oldest first."""
    return list(ledger.webhooks.deliveries(webhook.id, limit=1000))[::-1]


@contextmanager
def postman(engine: Engine, *, seconds: float = SECONDS) -> Iterator[None]:
    """One that walks until the end, and waits so long for a receiver."""
    stop, gate = threading.Event(), Gate(["127.0.0.1"], insecure=True)
    made = Postman(SqlOutbox(engine), lambda: Egress(gate, seconds=seconds), poll_seconds=0.02)
    thread = threading.Thread(target=made.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def age(engine: Engine, seconds: float) -> None:
    """All that waits is due now, and has been for so long."""
    with writing(engine) as connection:
        waiting = deliveries.c.next_at.is_not(None)
        connection.execute(update(deliveries).where(waiting).values(since=in_seconds(-seconds), next_at=in_seconds(-1)))


def test_a_job_is_told_of_from_its_submission_to_its_end(engine: Engine) -> None:
    ledger = WholeLedger(engine)
    with receiving() as receiver:
        webhook = subscribed(ledger, receiver, "JOB_QUEUED", "JOB_CLAIMED", "JOB_FAILED")
        job, _ = ledger.submit(SPEC)
        claim = ledger.claim("driver", 1000)
        assert claim is not None
        ledger.close(claim, JobState.FAILED, "DATASET_UNUSABLE: no such file")
        with postman(engine):
            receiver.wait(3)
            wait_until(lambda: all(each.state is DeliveryState.DELIVERED for each in sent(ledger, webhook)))
    told = {each.seq: (each.kind, each.at) for each in ledger.events(job.id)}
    letters = sorted(
        (verify(body, headers, webhook.secret) for headers, body in receiver.letters),
        key=lambda letter: letter["data"]["seq"],
    )
    for letter in letters:
        assert (letter["type"], datetime.fromisoformat(letter["timestamp"])) == told[letter["data"]["seq"]]
    assert [letter["type"] for letter in letters] == ["JOB_QUEUED", "JOB_CLAIMED", "JOB_FAILED"]
    assert [letter["data"]["state"] for letter in letters] == ["QUEUED", "PREPARING", "FAILED"]
    this = f"/v1/jobs/{job.id}"
    assert letters[2]["data"] == {
        "id": job.id,
        "state": "FAILED",
        "reason": "DATASET_UNUSABLE: no such file",
        "seq": max(told),
        "links": {"self": this, "events": f"{this}/events", "artifacts": f"{this}/artifacts"},
    }
    found = sent(ledger, webhook)
    assert {each.id for each in found} == set(receiver.ids)
    assert {(each.attempts, each.status, each.error, each.next_at) for each in found} == {(1, 204, "", None)}
    assert receiver.letters[0][0]["content-type"] == "application/json"


def test_only_who_asked_is_told(engine: Engine) -> None:
    ledger, record = WholeLedger(engine), SqlRecord(engine)
    url = "https://hooks.example.org/"
    ends = ledger.webhooks.create(url, ["JOB_CANCELLED"])[0]
    gone = ledger.webhooks.create(url, ["JOB_QUEUED"])[0]
    ledger.webhooks.delete(gone.id)
    job, _ = ledger.submit(SPEC)
    assert SqlOutbox(engine).take(10, lease_seconds=10) == []
    ledger.request_cancel(job.id)
    assert [each.kind for each in sent(ledger, ends)] == ["JOB_CANCELLED"]
    assert record.outbox().waiting == 1


def test_what_happens_to_trials_costs_no_look_at_webhooks(sqlite: Engine) -> None:
    ledger = WholeLedger(sqlite)
    ledger.submit(SPEC)
    claim = ledger.claim("driver", 1000)
    assert claim is not None
    statements: list[str] = []
    event.listen(sqlite, "before_cursor_execute", lambda c, u, statement, *_: statements.append(statement))
    ledger.note(claim, "PROGRESS", {"done": 1})
    assert not any("webhooks" in statement for statement in statements)
    assert len(statements) > 2


def test_what_fails_is_tried_again_later_and_at_last_given_up(engine: Engine) -> None:
    ledger, record = WholeLedger(engine), SqlRecord(engine)
    with receiving(answer(500), silence(1.0), answer(302, Location="http://127.0.0.1:1/"), answer(500)) as receiver:
        webhook = subscribed(ledger, receiver)
        ledger.submit(SPEC)
        errors = []
        for waited in (0.0, 60.0, 3600.0):
            age(engine, waited)
            with postman(engine, seconds=0.5):
                wait_until(lambda: len(receiver.letters) > len(errors))
            found = sent(ledger, webhook)[0]
            assert found.next_at is not None
            pause = (found.next_at - datetime.now(UTC)).total_seconds() / max(waited, FIRST_PAUSE)
            assert 0.5 < pause < 1.3
            errors.append((found.status, found.error))
        age(engine, PATIENCE + 1)
        with postman(engine):
            wait_until(lambda: sent(ledger, webhook)[0].state is DeliveryState.DEAD)
    assert errors == [
        (500, "the receiver answered 500"),
        (None, "the receiver did not answer within 5 s"),
        (302, "the receiver answered 302"),
    ]
    assert set(receiver.ids) == {sent(ledger, webhook)[0].id}, "one letter, whatever happens to it"
    assert (record.outbox().waiting, record.outbox().dead) == (0, 1)


def test_a_dead_letter_is_replayed_with_the_same_body(engine: Engine) -> None:
    ledger = WholeLedger(engine)
    with receiving(answer(500)) as receiver:
        webhook = subscribed(ledger, receiver)
        ledger.submit(SPEC)
        age(engine, PATIENCE + 1)
        with postman(engine):
            wait_until(lambda: sent(ledger, webhook)[0].state is DeliveryState.DEAD)
            letter = sent(ledger, webhook)[0]
            for count in (2, 3):
                assert ledger.webhooks.replay(webhook.id, letter.id).state is DeliveryState.WAITING
                wait_until(lambda: sent(ledger, webhook)[0].state is DeliveryState.DELIVERED)
                assert sent(ledger, webhook)[0].attempts == count, "what was delivered can be had again too"
    assert len({body for _, body in receiver.letters}) == len(set(receiver.ids)) == 1
    assert [entry.action for entry in ledger.account.audit(limit=2)] == ["webhooks.replay"] * 2


def test_a_receiver_says_when_to_come_again_or_never(engine: Engine) -> None:
    ledger = WholeLedger(engine)
    later, gone = answer(429, Retry_After="600"), answer(410)
    with receiving(later, gone) as receiver:
        webhook = subscribed(ledger, receiver)
        ledger.submit(SPEC)
        with postman(engine):
            wait_until(lambda: sent(ledger, webhook)[0].status == 429)
            found = sent(ledger, webhook)[0]
            assert found.next_at is not None
            assert 590 < (found.next_at - datetime.now(UTC)).total_seconds() <= 600
            ledger.submit(SPEC)
            wait_until(lambda: ledger.webhooks.webhook(webhook.id).disabled_at is not None)
            wait_until(lambda: all(each.state is DeliveryState.DEAD for each in sent(ledger, webhook)))
            ledger.submit(SPEC)
    assert len(receiver.letters) == len(sent(ledger, webhook)) == 2, "nothing is put down for it any more"


def test_a_webhook_that_is_deleted_takes_its_letters_along(engine: Engine) -> None:
    ledger, outbox = WholeLedger(engine), SqlOutbox(engine)
    webhook = ledger.webhooks.create("https://hooks.example.org/", ["JOB_QUEUED"])[0]
    ledger.submit(SPEC)
    [letter] = outbox.take(10, lease_seconds=10)
    ledger.webhooks.delete(webhook.id)
    assert SqlRecord(engine).outbox().waiting == 0
    outbox.failed(letter, 500, "late", again_seconds=1)
    assert SqlRecord(engine).outbox().waiting == 0, "and an attempt that was under way does not bring it back"


def test_of_an_attempt_only_the_latest_is_believed(engine: Engine) -> None:
    ledger, outbox = WholeLedger(engine), SqlOutbox(engine)
    webhook = ledger.webhooks.create("https://hooks.example.org/", ["JOB_QUEUED"])[0]
    ledger.submit(SPEC)
    [paused] = outbox.take(10, lease_seconds=0)
    assert outbox.take(10, lease_seconds=1000, busy=[webhook.id]) == []
    [second] = outbox.take(10, lease_seconds=1000)
    assert outbox.take(10, lease_seconds=1000) == [], "on lease"
    assert (paused.attempt, second.attempt) == (1, 2)
    outbox.give_up(paused, 500, "stale")
    outbox.disable(paused, 410, "stale")
    assert sent(ledger, webhook)[0].state is DeliveryState.WAITING
    assert ledger.webhooks.webhook(webhook.id).disabled_at is None
    outbox.delivered(second, 200)
    assert sent(ledger, webhook)[0].state is DeliveryState.DELIVERED


def test_what_has_come_to_its_end_is_forgotten_after_a_month(engine: Engine) -> None:
    ledger, outbox = WholeLedger(engine), SqlOutbox(engine)
    webhook = ledger.webhooks.create("https://hooks.example.org/", ["JOB_QUEUED"])[0]
    for _ in range(4):
        ledger.submit(SPEC)
    old, waiting, dead, young = outbox.take(10, lease_seconds=1000)
    outbox.delivered(old, 200)
    outbox.give_up(dead, 500, "")
    outbox.delivered(young, 200)
    with writing(engine) as connection:
        ids = [old.id, waiting.id, dead.id]
        long_ago = update(deliveries).where(deliveries.c.id.in_(ids)).values(created_at=in_seconds(-KEPT_SECONDS - 60))
        connection.execute(long_ago)
    with postman(engine):
        wait_until(lambda: len(sent(ledger, webhook)) == 2)
    assert {each.id for each in sent(ledger, webhook)} == {waiting.id, young.id}


def test_a_server_has_a_postman_that_gets_up_again(
    sqlite: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, stop = WholeLedger(sqlite), threading.Event()
    monkeypatch.setattr(serve, "_GET_UP_SECONDS", 0.01)
    take, falls = SqlOutbox.take, [RuntimeError("a mistake of ours")]

    def stumbling(outbox: SqlOutbox, *place: Any, **options: Any) -> Any:
        if falls:
            raise falls.pop()
        return take(outbox, *place, **options)

    monkeypatch.setattr(SqlOutbox, "take", stumbling)
    settings = Settings(home=tmp_path, webhook_hosts=("127.0.0.1",), webhook_insecure=True)
    with receiving() as receiver, serve._sending(settings, SqlOutbox(sqlite), stop):
        subscribed(ledger, receiver)
        ledger.submit(SPEC)
        receiver.wait(1)
    assert stop.is_set()
    assert falls == []


def test_how_far_it_is_behind(engine: Engine) -> None:
    ledger, record = WholeLedger(engine), SqlRecord(engine)
    assert record.outbox().oldest_seconds == 0
    ledger.webhooks.create("https://hooks.example.org/", ["JOB_QUEUED"])
    for _ in range(AT_ONCE + 2):
        ledger.submit(SPEC)
    with writing(engine) as connection:
        connection.execute(update(deliveries).values(next_at=in_seconds(-50)))
    found = record.outbox()
    assert 50 <= found.oldest_seconds < 60
    assert (found.waiting, found.dead) == (AT_ONCE + 2, 0)
    assert len(SqlOutbox(engine).take(100, lease_seconds=1000)) == AT_ONCE, "of one webhook"


def test_two_postmen_deliver_each_letter_once(postgres: Engine) -> None:
    ledger = WholeLedger(postgres)
    with receiving() as receiver:
        webhooks = [subscribed(ledger, receiver) for _ in range(3)]
        for _ in range(25):
            ledger.submit(SPEC)
        with postman(postgres), postman(postgres):
            receiver.wait(75, 20)
            wait_until(lambda: SqlRecord(postgres).outbox().waiting == 0)
    assert len(receiver.ids) == len(set(receiver.ids)) == 75
    assert {each.attempts for webhook in webhooks for each in sent(ledger, webhook)} == {1}


@pytest.mark.timeout(60)
def test_what_a_killed_sender_had_in_its_hands_is_sent_by_another(postgres: Engine, postgres_server: str) -> None:
    ledger = WholeLedger(postgres)
    held = threading.Event()
    with receiving(lambda handler: bool(held.wait(20)) and None) as receiver:  # type: ignore[arg-type, return-value]
        webhook = subscribed(ledger, receiver)
        ledger.submit(SPEC)
        sender = context.Process(target=send, args=(postgres_server, 3.0))
        sender.start()
        receiver.wait(1, 20)
        sender.kill()
        sender.join()
        assert sent(ledger, webhook)[0].state is DeliveryState.WAITING
        with postman(postgres):
            time.sleep(0.3)
            assert len(receiver.letters) == 1, "not before its lease is over"
            receiver.wait(2)
            wait_until(lambda: sent(ledger, webhook)[0].state is DeliveryState.DELIVERED)
        held.set()
    assert len(set(receiver.ids)) == 1
    assert sent(ledger, webhook)[0].attempts == 2


@given(st.floats(0, PATIENCE), st.none() | st.floats(-10, 1e12))
def test_a_pause_grows_with_what_was_waited_and_ends_with_patience(waited: float, asked: float | None) -> None:
    found = pause(waited, asked)
    assert FIRST_PAUSE * 0.75 <= found <= LONGEST_PAUSE * 1.25
    assert waited + found <= PATIENCE + FIRST_PAUSE
    if asked is not None and FIRST_PAUSE < asked < LONGEST_PAUSE and waited + asked < PATIENCE:
        assert found >= asked


def test_a_day_is_some_twenty_attempts() -> None:
    attempts, waited = 1, 0.0
    while waited < PATIENCE:
        waited += pause(waited)
        attempts += 1
    assert 15 <= attempts <= 30


# What users see


@pytest.fixture
def http(sqlite: Engine, tmp_path: Path) -> Iterator[TestClient]:
    settings = Settings(home=tmp_path, api_key=KEY, webhook_hosts=("*.example.org",))  # type: ignore[arg-type]
    app = create_app(settings, SqlRecord(sqlite), MemoryArtifacts(), Willing(), schema_version=latest_revision())
    with client_of(app, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


ASKED = {"url": "https://hooks.example.org/x", "kinds": ["JOB_QUEUED"]}


def test_the_secret_is_shown_once(http: TestClient) -> None:
    made = http.post("/v1/webhooks", json=ASKED, headers={"Idempotency-Key": "one"})
    secret = made.json().pop("secret")
    assert (made.status_code, made.headers["location"]) == (201, f"/v1/webhooks/{made.json()['id']}")
    assert len(secret) == len("whsec_") + 44
    again = http.post("/v1/webhooks", json=ASKED, headers={"Idempotency-Key": "one"})
    assert again.json() == made.json(), "whose answer was lost may have it again by the same key"
    assert again.headers["idempotency-replayed"] == "true"
    other = http.post("/v1/webhooks", json={"url": ASKED["url"]}, headers={"Idempotency-Key": "one"})
    assert (other.status_code, other.json()["code"]) == (422, "IDEMPOTENCY_KEY_REUSED")
    for answered in (http.get("/v1/webhooks"), http.get(made.headers["location"]), http.get("/v1/audit")):
        assert secret not in answered.text
    assert http.get(made.headers["location"]).json() == {
        name: value for name, value in made.json().items() if name != "secret"
    }


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({}, "INVALID", "/url"),
        ({"url": "http://hooks.example.org/"}, "INVALID", "/url"),
        ({"url": "https://127.0.0.1/"}, "INVALID", "/url"),
        ({"url": "https://example.com/"}, "INVALID", "/url"),
        ({"url": "https://a.example.org/" + "x" * 2000}, "INVALID", "/url"),
        ({**ASKED, "kinds": []}, "INVALID", "/kinds"),
        ({**ASKED, "kinds": ["TRIAL_SCORED"]}, "INVALID", "/kinds"),
        ({**ASKED, "kinds": ["JOB_QUEUED", "JOB_QUEUED"]}, "INVALID", "/kinds"),
        ({**ASKED, "secret": "mine"}, "INVALID", "/secret"),
    ],
)
def test_what_cannot_be_is_told_with_a_pointer(http: TestClient, body: dict[str, Any], code: str, pointer: str) -> None:
    answered = http.post("/v1/webhooks", json=body)
    assert (answered.status_code, answered.json()["code"]) == (422, code)
    assert [error["pointer"] for error in answered.json()["errors"]] == [pointer]


def test_nothing_is_sent_anywhere_unless_the_operator_says_where(sqlite: Engine, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, auth="off")
    app = create_app(settings, SqlRecord(sqlite), MemoryArtifacts(), Willing(), schema_version=latest_revision())
    with client_of(app) as http:
        answered = http.post("/v1/webhooks", json=ASKED)
    assert (answered.status_code, answered.json()["code"]) == (403, "WEBHOOKS_OFF")
    assert "STILLHOUSE_WEBHOOK_HOSTS" in answered.json()["detail"]


def test_the_hosts_are_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_WEBHOOK_HOSTS", "hooks.example.org, *.example.com")
    assert read_settings().webhook_hosts == ("hooks.example.org", "*.example.com")
    monkeypatch.delenv("STILLHOUSE_WEBHOOK_HOSTS")
    assert read_settings().webhook_hosts == ()
    assert not read_settings().webhook_insecure
    for wrong in ("https://hooks.example.org", "hooks.example.org:443", "*", "a b"):
        monkeypatch.setenv("STILLHOUSE_WEBHOOK_HOSTS", wrong)
        with pytest.raises(InvalidSettings, match="STILLHOUSE_WEBHOOK_HOSTS"):
            read_settings()


def test_deliveries_are_listed_newest_first_by_page_and_by_state(http: TestClient, sqlite: Engine) -> None:
    webhook = http.post("/v1/webhooks", json=ASKED).json()["id"]
    for _ in range(5):
        SqlRecord(sqlite).jobs(OPERATOR).submit(SPEC)
    trial = http.post(f"/v1/webhooks/{webhook}:test").json()
    assert (trial["kind"], trial["job_id"], trial["state"]) == ("WEBHOOK_TEST", None, "WAITING")
    outbox = SqlOutbox(sqlite)
    first, second, *_ = outbox.take(10, lease_seconds=1000)
    outbox.delivered(first, 200)
    outbox.give_up(second, 404, "the receiver answered 404")
    seen: list[Any] = []
    token = ""
    while True:
        params: Any = {"page_size": 2, "page_token": token}
        page = http.get(f"/v1/webhooks/{webhook}/deliveries", params=params).json()
        seen += page["deliveries"]
        token = page["next_page_token"]
        if not token:
            break
    assert len(seen) == 6
    assert seen[0]["id"] == trial["id"]
    assert [each["created_at"] for each in seen] == sorted((each["created_at"] for each in seen), reverse=True)
    for state, count in (("WAITING", 4), ("DELIVERED", 1), ("DEAD", 1)):
        listed = http.get(f"/v1/webhooks/{webhook}/deliveries", params={"state": state}).json()["deliveries"]
        assert [each["state"] for each in listed] == [state] * count
    token = http.get(f"/v1/webhooks/{webhook}/deliveries", params={"page_size": 1}).json()["next_page_token"]
    other = http.get(f"/v1/webhooks/{webhook}/deliveries", params={"state": "DEAD", "page_token": token})
    assert other.status_code == 422
    replayed = http.post(f"/v1/webhooks/{webhook}/deliveries/{second.id}:replay")
    assert (replayed.status_code, replayed.json()["state"]) == (202, "WAITING")


def test_a_tenant_has_so_many_and_no_more(sqlite: Engine) -> None:
    mine = SqlRecord(sqlite).webhooks(OPERATOR)
    made = [mine.create(f"https://hooks.example.org/{number}", ["JOB_QUEUED"])[0] for number in range(MOST)]
    with pytest.raises(TooManyWebhooks, match="delete one"):
        mine.create("https://hooks.example.org/", ["JOB_QUEUED"])
    mine.delete(made[0].id)
    mine.create("https://hooks.example.org/", ["JOB_QUEUED"])
    assert len(mine.webhooks(limit=100)) == MOST


def test_every_kind_of_event_of_a_job_can_be_asked_for() -> None:
    kinds = [kind for kind in Kind if kind.startswith("JOB_")]
    assert set(kinds) == KINDS
    assert WebhookRequest(url="https://x", kinds=tuple(kinds)).kinds == tuple(kinds)
    schema = json.dumps(WebhookRequest.model_json_schema())
    assert all(kind in schema for kind in kinds)


def test_a_letter_tells_nothing_to_another_tenant(sqlite: Engine) -> None:
    from service.store.accounts import SqlTenants

    SqlTenants(sqlite, "shell").create("other")
    record = SqlRecord(sqlite)
    record.webhooks(OPERATOR).create("https://hooks.example.org/", ["JOB_QUEUED"])
    record.jobs(Caller("other", "test", Scope.ADMIN)).submit(SPEC)
    assert record.outbox().waiting == 0


@pytest.fixture
def url(sqlite: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server whose webhooks may go to this machine."""
    settings = Settings(
        home=tmp_path,
        api_key=KEY,
        webhook_hosts=("127.0.0.1",),
        webhook_insecure=True,  # type: ignore[arg-type]
    )
    app = create_app(settings, SqlRecord(sqlite), MemoryArtifacts(), Willing(), schema_version=latest_revision())
    monkeypatch.setenv("STILLHOUSE_API_KEY", KEY)
    with listening(app) as url:
        monkeypatch.setenv("STILLHOUSE_URL", url)
        yield url


def test_from_python(url: str, sqlite: Engine) -> None:
    with Client() as client, receiving() as receiver, postman(sqlite):
        made = client.webhooks.create(receiver.url, ["JOB_QUEUED"])
        assert made.secret.startswith("whsec_")
        assert [found.id for found in client.webhooks.list()] == [made.id]
        assert client.webhooks.get(made.id).kinds == ["JOB_QUEUED"]
        job, _ = SqlRecord(sqlite).jobs(OPERATOR).submit(SPEC)
        client.webhooks.test(made.id)
        receiver.wait(2)
        letters = [verify(body, headers, made.secret) for headers, body in receiver.letters]
        assert {letter["type"]: letter["data"]["id"] for letter in letters} == {
            "JOB_QUEUED": job.id,
            "WEBHOOK_TEST": made.id,
        }
        wait_until(lambda: len(list(client.webhooks.deliveries(made.id, state="DELIVERED", page_size=1))) == 2)
        assert client.webhooks.replay(made.id, receiver.ids[0]).id == receiver.ids[0]
        receiver.wait(3)
        assert receiver.ids[2] == receiver.ids[0]
        client.webhooks.delete(made.id)
        assert list(client.webhooks.list()) == []
        with pytest.raises(NotFound):
            client.webhooks.test(made.id)
        with pytest.raises(Invalid, match="not among"):
            client.webhooks.create("https://example.org/")


def test_from_a_shell(url: str, sqlite: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")

    def shell(*words: str) -> Any:
        done = CliRunner().invoke(cli, ["webhooks", *words])
        assert done.exit_code == 0, done.stderr
        return done

    secret = shell("create", "http://127.0.0.1:9/", "--kind", "JOB_QUEUED").stdout.strip()
    assert secret.startswith("whsec_")
    assert len(secret.split()) == 1, "the secret alone is data"
    [webhook] = json.loads(shell("list", "--json").stdout)["webhooks"]
    assert secret not in json.dumps(webhook)
    assert webhook["id"] in shell("list").stdout
    sent = json.loads(shell("test", webhook["id"], "--json").stdout)
    outbox = SqlOutbox(sqlite)
    [letter] = outbox.take(10, lease_seconds=1000)
    outbox.give_up(letter, 404, "the receiver answered 404")
    [dead] = json.loads(shell("deliveries", webhook["id"], "--state", "dead", "--json").stdout)["deliveries"]
    assert (dead["id"], dead["state"]) == (sent["id"], "DEAD")
    assert "the receiver answered 404" in shell("deliveries", webhook["id"]).stdout
    assert json.loads(shell("replay", webhook["id"], dead["id"], "--json").stdout)["state"] == "WAITING"
    assert "is deleted" in shell("delete", webhook["id"]).stdout
    assert json.loads(shell("list", "--json").stdout) == {"webhooks": []}
    missing = CliRunner().invoke(cli, ["webhooks", "delete", webhook["id"]])
    assert missing.exit_code == Exit.NOT_FOUND


def test_the_receiver_of_the_guide_takes_what_is_signed_and_nothing_else() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "webhooks.md").read_text()
    [program] = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    port, secret, body = free_port(), new_secret(), b'{"type": "JOB_SUCCEEDED", "data": {"id": "job_1"}}'
    environment = {**os.environ, "WEBHOOK_SECRET": secret}
    receiver = subprocess.Popen([sys.executable, "-c", program, str(port)], stdout=subprocess.PIPE, env=environment)
    try:
        wait_until(lambda: answers_at(port), 20)
        address, at = f"http://127.0.0.1:{port}/", int(time.time())
        good = headers_of("delivery_1", at, body, secret)
        with httpx2.Client() as http:
            answers = [
                http.post(address, content=sent, headers=headers).status_code
                for sent, headers in (
                    (body, good),
                    (body, good),
                    (body + b" ", good),
                    (body, headers_of("delivery_2", at, body, new_secret())),
                    (body, headers_of("delivery_3", at - 400, body, secret)),
                )
            ]
    finally:
        receiver.terminate()
        printed, _ = receiver.communicate()
    assert answers == [204, 204, 401, 401, 401]
    assert printed == b"JOB_SUCCEEDED job_1\n", "once, though it came twice"
