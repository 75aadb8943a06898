"""Keys, scopes and tenants over HTTP. What each operation asks for is read in the OpenAPI document, not listed here."""

from __future__ import annotations

import base64
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, event, insert, text, update
from starlette.testclient import TestClient

from search.errors import StoreUnavailable
from search.spec import read_spec
from search.trial import Score, Trial
from service.app import create_app
from service.examples import PLAN
from service.openapi import document
from service.settings import Settings
from service.store.accounts import PREFIX, SqlTenants, digest_of
from service.store.engine import latest_revision, writing
from service.store.ledger import SqlLedger
from service.store.outbox import SqlOutbox
from service.store.record import SqlRecord
from service.store.tables import keys, metadata, now, tenants
from service.store.values import DEFAULT, Caller, Quota, Scope
from tests.search.headers import good
from tests.service.served import SPEC, WEIGHTS, client_of, digest, in_threads, listening
from workers.memory import MemoryArtifacts

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start

DOCUMENT = document()
OPERATIONS = {
    operation["operationId"]: (method.upper(), path, operation)
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}
GUARDED = {
    name: Scope(operation["security"][0]["apiKey"][0])
    for name, (_, _, operation) in OPERATIONS.items()
    if "security" in operation
}
OF_A_TENANT = {
    name
    for name in GUARDED
    if re.search(r"\{(job|key|trial|webhook|delivery|upload|teacher|dataset)_id\}", OPERATIONS[name][1])
}
CHANGING = {name for name in GUARDED if OPERATIONS[name][0] != "GET"}
ABSORBING = ("jobs.cancel", "keys.revoke", "uploads.delete", "webhooks.replay")
"""Changes that change nothing when they are asked for again."""
NAMES = ("alice", "bob")
CANARY = "sth_canary-0123456789-0123456789-0123456789"


WEIGHTS_FILE = good()
BODIES_OF: dict[str, Any] = {
    "jobs.create": {"json": SPEC},
    "teachers.create": {"json": {"name": "t", "teacher": SPEC["teacher"], "dataset": SPEC["dataset"]}},
    "uploads.content": {"content": WEIGHTS_FILE},
}
"""Where the example of the description is not what there is in the house."""


WHOLE = {"page_size": 1000}


def example(name: str) -> Any:
    return OPERATIONS[name][2]["responses"]["200"]["content"]["application/json"]["example"]


TEACHER, REPORT = example("teachers.get"), example("datasets.report")


class Willing:
    """A checker that finds no fault."""

    def known(self, spec: Any) -> None:
        """Nothing."""

    def check(self, spec: Any) -> dict[str, Any]:
        return PLAN

    def catalog(self, kind: str) -> list[dict[str, Any]]:
        return []

    def teacher(self, teacher: Any, dataset: Any) -> dict[str, Any]:
        return TEACHER["facts"]

    def dataset(self, dataset: Any, seconds: float) -> dict[str, Any]:
        return REPORT

    def close(self) -> None:
        """There is nothing to close."""


@dataclass(frozen=True)
class House:
    """
    A server with two tenants, each with a key of every scope, a job with a trial and an artifact, and a webhook with a
    delivery that was given up.
    """

    app: FastAPI
    engine: Engine
    http: TestClient
    secrets: dict[str, dict[Scope, str]]
    ids: dict[str, dict[str, str]]

    def ask(self, name: str, secret: str, ids: dict[str, str], **options: Any) -> httpx2.Response:
        method, path, operation = OPERATIONS[name]
        contents = operation.get("requestBody", {}).get("content", {})
        [(kind, content)] = contents.items() or [("application/json", {})]
        address = path.format(**{"kind": "teachers", "name": "weights", **ids})
        headers = {"Authorization": f"Bearer {secret}", "X-Request-Id": "same", "Content-Type": kind}
        found: httpx2.Response = self.http.request(
            method,
            address,
            headers=headers | options.pop("headers", {}),
            **BODIES_OF.get(name, {"json": content.get("example")}),
            **options,
        )
        return found

    def ready_for(self, name: str, tenant: str) -> dict[str, str]:
        """Ids of the tenant with which the operation changes something: of the house, or of what is made for it."""
        record, caller = self.app.state.record, Caller(tenant, "shell", Scope.ADMIN)
        if name in ("uploads.content", "uploads.delete", "teachers.delete", "datasets.delete"):
            return self.ids[tenant] | held(record, caller)
        if name not in CHANGING or not name.startswith("jobs.") or name == "jobs.create":
            return self.ids[tenant]
        jobs = record.jobs(caller)
        job, _ = jobs.submit(read_spec(SPEC))
        if name in ("jobs.retry", "jobs.delete"):
            jobs.request_cancel(job.id)
        if name == "jobs.resume":
            jobs.request_pause(job.id)
        return self.ids[tenant] | {"job_id": job.id}


def held(record: SqlRecord, caller: Caller) -> dict[str, str]:
    """An upload whose content has not come, a teacher and a dataset; their ids."""
    upload, _ = record.uploads(caller).declare(len(WEIGHTS_FILE), digest(WEIGHTS_FILE))
    teacher, _ = record.teachers(caller).create("t", TEACHER["spec"] | {"weights": None}, TEACHER["facts"])
    dataset, _ = record.datasets(caller).create("d", SPEC["dataset"], REPORT)
    return {"upload_id": upload.id, "teacher_id": teacher.id, "dataset_id": dataset.id}


def furnished(
    engine: Engine,
) -> tuple[SqlRecord, MemoryArtifacts, dict[str, dict[Scope, str]], dict[str, dict[str, str]]]:
    """What is in a `House`: the record, the artifacts, and of each tenant its keys by scope and its ids by name."""
    record, ledger, outbox, artifacts = SqlRecord(engine), SqlLedger(engine), SqlOutbox(engine), MemoryArtifacts()
    secrets: dict[str, dict[Scope, str]] = {}
    ids: dict[str, dict[str, str]] = {}
    for name in NAMES:
        SqlTenants(engine, "shell").create(name)
        caller = Caller(name, "shell", Scope.ADMIN)
        made = {scope: record.account(caller).create_key(f"{name} {scope}", scope) for scope in Scope}
        secrets[name] = {scope: secret for scope, (_, secret) in made.items()}
        webhook, _ = record.webhooks(caller).create("https://hooks.example.org/1", ["JOB_QUEUED"])
        job, _ = record.jobs(caller).submit(read_spec(SPEC))
        [letter] = outbox.take(10, lease_seconds=1000)
        outbox.give_up(letter, None, "nobody was there")
        claim = ledger.claim("driver", 1000)
        assert claim is not None
        assert claim.job_id == job.id
        trial = ledger.open_trial(claim, Trial("", 0, "k", {"a": 1}, {"a": 2}, {"macs": 3}))
        ledger.start_trial(claim, trial.id)
        ledger.score_trial(claim, trial.id, Score(0, 10, 0.5, 0.1, 1.0), last=True)
        ledger.keep(claim, "weights", artifacts.put(f"jobs/{job.id}/w", WEIGHTS), "application/octet-stream")
        ids[name] = {"job_id": job.id, "trial_id": trial.id, "key_id": made[Scope.READ][0].id}
        ids[name] |= {"webhook_id": webhook.id, "delivery_id": letter.id, **held(record, caller)}
    return record, artifacts, secrets, ids


@pytest.fixture
def house(engine: Engine, tmp_path: Path) -> Iterator[House]:
    record, artifacts, secrets, ids = furnished(engine)
    settings = Settings(home=tmp_path, webhook_hosts=("hooks.example.org",))
    app = create_app(settings, record, artifacts, Willing(), schema_version=latest_revision())
    with client_of(app) as http:
        yield House(app, engine, http, secrets, ids)


def destructive_last(names: Iterable[str]) -> list[str]:
    """What takes away that which the others ask for comes after them, and last the key that is asked with."""
    return sorted(names, key=lambda name: (name == "keys.revoke", name.endswith(".delete"), name))


def told(answer: httpx2.Response, ids: dict[str, str]) -> tuple[int, str]:
    """An answer without the ids that were asked for."""
    said = answer.text
    for name, value in ids.items():
        said = said.replace(value, name)
    return answer.status_code, said


def test_the_document_says_of_every_operation_what_key_it_takes() -> None:
    open_to_all = {"health", "readiness", "problem"}
    assert GUARDED.keys() == OPERATIONS.keys() - open_to_all
    assert {"jobs.get", "jobs.cancel", "jobs.artifact_content", "jobs.trial", "keys.get", "keys.revoke"} <= OF_A_TENANT
    assert {GUARDED[name] for name in CHANGING} == {Scope.SUBMIT, Scope.ADMIN}, "nobody changes anything by reading"


def test_what_is_another_tenants_is_answered_like_what_never_was(house: House) -> None:
    """Every operation with an id of a tenant's in its path; foreign ids and ids of nobody, told apart by nothing."""
    mine, theirs = house.ids["alice"], house.ids["bob"]
    for name in destructive_last(OF_A_TENANT):
        secret = house.secrets["alice"][Scope.ADMIN]
        assert house.ask(name, secret, house.ready_for(name, "alice")).status_code in (200, 201, 202, 204), name
    nobodys = {name: f"{value.partition('_')[0]}_{'0' * 26}" for name, value in mine.items()}
    for name in sorted(OF_A_TENANT):
        foreign, missing = (house.ask(name, secret, ids) for ids in (theirs, nobodys))
        assert foreign.status_code == 404, name
        assert told(foreign, theirs) == told(missing, nobodys), name
        assert foreign.headers.keys() == missing.headers.keys(), name
    assert house.ask("jobs.trial", secret, mine | {"trial_id": theirs["trial_id"]}).status_code == 404
    bobs = house.secrets["bob"][Scope.ADMIN]
    assert house.ask("jobs.get", bobs, theirs).json()["state"] == "PREPARING", "and it was not touched"
    assert house.ask("keys.get", bobs, theirs).json()["revoked_at"] is None


def test_lists_are_of_ones_own(house: House) -> None:
    listing = ("jobs.list", "keys.list", "webhooks.list", "audit")
    for name in NAMES:
        secret = house.secrets[name][Scope.ADMIN]
        listed = {kind: json.dumps(house.ask(kind, secret, {}).json()) for kind in listing}
        for other in NAMES:
            assert (house.ids[other]["job_id"] in listed["jobs.list"]) == (other == name)
            assert (house.ids[other]["key_id"] in listed["keys.list"]) == (other == name)
            assert (house.ids[other]["webhook_id"] in listed["webhooks.list"]) == (other == name)
            assert (house.ids[other]["key_id"] in listed["audit"]) == (other == name)
        assert house.ask("usage", secret, {}).json()["tenant"] == name


def test_each_operation_refuses_a_weaker_scope_and_takes_its_own(house: House) -> None:
    for name in destructive_last(GUARDED):
        for scope in Scope:
            answer = house.ask(name, house.secrets["alice"][scope], house.ready_for(name, "alice"))
            if scope.covers(GUARDED[name]):
                assert answer.status_code < 300, (name, scope, answer.text)
            else:
                assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN"), (name, scope)
                assert f"`{GUARDED[name]}`" in answer.json()["detail"]


def test_each_operation_refuses_who_bears_no_key(house: House) -> None:
    for name in sorted(GUARDED):
        for secret in ("", CANARY, "sth_", house.secrets["alice"][Scope.ADMIN][:-1]):
            answer = house.ask(name, secret, house.ids["alice"])
            assert (answer.status_code, answer.json()["code"]) == (401, "UNAUTHENTICATED"), name
            assert answer.headers["www-authenticate"].startswith("Bearer")


def test_every_change_leaves_one_row_in_the_audit(house: House) -> None:
    """In the same transaction: where the row cannot be written nothing has happened, which the fault tests see to."""
    secret = house.secrets["alice"][Scope.ADMIN]
    listed = house.ask("keys.list", secret, {}).json()["keys"]
    admin = next(key["id"] for key in listed if key["name"] == "alice admin")
    for name in destructive_last(CHANGING):
        ids = house.ready_for(name, "alice")
        before = house.ask("audit", secret, {}, params=WHOLE).json()["entries"]
        answer = house.ask(name, secret, ids, headers={"X-Request-Id": f"change-{name}"})
        assert answer.status_code < 300, answer.text
        [entry, *former] = house.ask("audit", secret, {}, params=WHOLE).json()["entries"]
        assert former == before
        of = {"webhooks.replay": "delivery_id"}.get(name, f"{name.partition('.')[0].removesuffix('s')}_id")
        on = answer.json()["id"] if answer.status_code == 201 else ids[of]
        assert entry | {"id": "", "at": ""} == {
            "id": "",
            "at": "",
            "actor": admin,
            "action": name,
            "object": on,
            "request_id": f"change-{name}",
        }


def test_what_changes_nothing_leaves_no_row(house: House) -> None:
    secret, ids = house.secrets["alice"][Scope.ADMIN], house.ids["alice"]
    once = {"headers": {"Idempotency-Key": "once"}}
    again = (("jobs.create", once), ("webhooks.create", once), *((name, {}) for name in ABSORBING))
    for name, options in again:
        assert house.ask(name, secret, ids, **options).status_code < 300
    before = house.ask("audit", secret, {}).json()
    for name, options in again:
        assert house.ask(name, secret, ids, **options).status_code < 300
    assert house.ask("jobs.create", secret, ids, params={"validate_only": "true"}).status_code == 200
    for name in sorted(GUARDED.keys() - CHANGING):
        house.ask(name, secret, ids)
    assert house.ask("audit", secret, {}).json() == before


def test_the_audit_is_read_page_by_page(house: House) -> None:
    secret = house.secrets["alice"][Scope.ADMIN]
    for _ in range(3):
        house.ask("keys.create", secret, {})
    whole = house.ask("audit", secret, {}).json()["entries"]
    seen, token = [], ""
    while True:
        page = house.ask("audit", secret, {}, params={"page_size": 2, "page_token": token}).json()
        seen += page["entries"]
        token = page["next_page_token"]
        if not token:
            break
    assert seen == whole
    assert (
        len({entry["id"] for entry in whole}) == len(whole) == 12
    )  # the tenant, 3 keys, a webhook, a job, an upload, a teacher, a dataset; 3 more


def test_a_key_that_is_revoked_or_over_opens_nothing(house: House) -> None:
    admin = house.secrets["alice"][Scope.ADMIN]
    made = [house.ask("keys.create", admin, {}).json() for _ in range(3)]
    assert all(house.ask("usage", key["key"], {}).status_code == 200 for key in made)
    assert house.ask("keys.revoke", admin, {"key_id": made[0]["id"]}).status_code == 204
    with writing(house.engine) as connection:
        connection.execute(update(keys).where(keys.c.id == made[1]["id"]).values(expires_at=now()))
    answers = [house.ask("usage", key["key"], {}).status_code for key in made]
    assert answers == [401, 401, 200]
    listed = {key["id"]: key for key in house.ask("keys.list", admin, {}).json()["keys"]}
    assert listed[made[0]["id"]]["revoked_at"] is not None
    assert listed[made[2]["id"]]["last_used_at"] is not None
    assert listed[made[2]["id"]]["expires_at"] > listed[made[2]["id"]]["created_at"]


def test_a_key_that_cannot_be_made_is_told_with_a_pointer(house: House) -> None:
    headers = {"Authorization": f"Bearer {house.secrets['alice'][Scope.ADMIN]}"}
    for body, pointer in (
        ({}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "x" * 101}, "/name"),
        ({"name": "x", "scope": "root"}, "/scope"),
        ({"name": "x", "tenant": "bob"}, "/tenant"),
        ({"name": "x", "expires_in_seconds": 0}, "/expires_in_seconds"),
        ({"name": "x", "expires_in_seconds": 10**18}, "/expires_in_seconds"),
        ([], ""),
    ):
        answer = house.http.post("/v1/keys", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "INVALID")
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_reading_writes_the_use_of_a_key_once_a_minute(house: House) -> None:
    secret, written = house.secrets["alice"][Scope.READ], []

    def before(_c: object, _u: object, statement: str, *_: object) -> None:
        if not statement.startswith(("SELECT", "BEGIN")):
            written.append(statement)

    event.listen(house.engine, "before_cursor_execute", before)
    for _ in range(5):
        house.ask("usage", secret, {})
    event.remove(house.engine, "before_cursor_execute", before)
    assert [statement.split()[1] for statement in written] == ["keys"]


def test_a_record_that_cannot_note_the_use_of_a_key_can_be_read_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise StoreUnavailable("the database is read-only")

    monkeypatch.setattr("service.store.record.writing", full)
    assert house.ask("usage", house.secrets["alice"][Scope.READ], {}).status_code == 200


def test_no_key_is_anywhere_but_with_its_bearer(
    house: House, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A key that works, and one that does not, in every operation and in every place of a request that we read."""
    caplog.set_level(logging.DEBUG)
    with writing(house.engine) as connection:
        row = {"id": "key_canary", "tenant": "alice", "name": "c", "scope": "admin", "created_at": now()}
        connection.execute(insert(keys).values(digest=digest_of(CANARY), **row))
    answers = [house.ask(name, CANARY, house.ids["alice"]).text for name in sorted(GUARDED)]
    answers += [house.ask(name, f"{CANARY}x", house.ids["alice"]).text for name in sorted(GUARDED)]
    assert "sth_" in "".join(answers), "the one that was made is shown"
    shown = "".join(answers) + caplog.text + "".join(capfd.readouterr())
    assert CANARY not in shown
    with house.engine.connect() as connection:
        for table in metadata.tables:
            rows = str(connection.execute(text(f"SELECT * FROM {table}")).all())  # noqa: S608 - a table of ours
            assert PREFIX not in rows, table


def test_fifty_equal_submissions_at_once_make_one_job_of_each_tenant(house: House) -> None:
    with writing(house.engine) as connection:
        connection.execute(update(tenants).where(tenants.c.name == "alice").values(queued_jobs=1))
    with listening(house.app) as url, httpx2.Client(base_url=url, limits=httpx2.Limits(max_connections=None)) as http:

        def submit(number: int) -> tuple[str, int, str]:
            name = NAMES[number % 2]
            secret = house.secrets[name][Scope.SUBMIT]
            headers = {"Idempotency-Key": "k", "Authorization": f"Bearer {secret}"}
            answer = http.post("/v1/jobs", json=SPEC, headers=headers, timeout=25)
            return name, answer.status_code, answer.json().get("id", answer.text)

        answers = in_threads(50, submit)
    assert {status for _, status, _ in answers} == {201}, "the quota is no reason to refuse what is on record already"
    for name in NAMES:
        assert len({job_id for of, _, job_id in answers if of == name}) == 1
    assert len({job_id for _, _, job_id in answers}) == 2


def test_a_spent_quota_is_told_by_its_name(house: House) -> None:
    SqlTenants(house.engine, "shell").limit("alice", {Quota.QUEUED_JOBS: 1})
    secret = house.secrets["alice"][Scope.SUBMIT]
    assert house.ask("jobs.create", secret, {}).status_code == 201
    answer = house.ask("jobs.create", secret, {})
    assert (answer.status_code, answer.json()["code"]) == (429, "QUOTA_QUEUED_JOBS")
    assert int(answer.headers["retry-after"]) > 0
    assert answer.headers["x-should-retry"] == "false"
    assert house.ask("jobs.create", house.secrets["bob"][Scope.SUBMIT], {}).status_code == 201
    used = house.ask("usage", secret, {}).json()["quotas"]
    assert used["queued_jobs"] == {"used": 1, "limit": 1}
    assert used["concurrent_trials"] == {"used": 2, "limit": None}
    assert used["stored_bytes"] == {"used": len(WEIGHTS), "limit": None}


def test_a_key_that_is_used_too_often_has_to_wait_and_others_need_not(engine: Engine, tmp_path: Path) -> None:
    record = SqlRecord(engine)
    account = record.account(Caller(DEFAULT, "shell", Scope.ADMIN))
    (_, busy), (_, quiet) = account.create_key("busy", Scope.READ), account.create_key("quiet", Scope.READ)
    settings = Settings(home=tmp_path, key_rate=0.01, key_burst=3)
    app = create_app(settings, record, MemoryArtifacts(), Willing(), schema_version=latest_revision())
    with client_of(app) as http:

        def ask(secret: str) -> httpx2.Response:
            answer: httpx2.Response = http.get("/v1/usage", headers={"Authorization": f"Bearer {secret}"})
            return answer

        answers = [ask(busy) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == ["r=2", "r=1", "r=0", "r=0"]
        assert answers[0].headers["ratelimit-policy"] == '"key";q=3;w=300'
        assert answers[3].json()["code"] == "RATE_LIMITED"
        assert 90 < int(answers[3].headers["retry-after"]) <= 100
        assert ask(quiet).status_code == 200
        assert http.get("/healthz").status_code == 200


HOSTILE = [
    *("\x00", "%00", "..", "%2e%2e%2f", "'; drop table keys;--", "é", "a" * 5000, "-1", "1e400", "NaN", "{}", "%ff"),
    *(
        base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")
        for place in (
            ["0001-01-01T00:00:00+00:00", "x", None],
            ["9999-12-31T23:59:59-23:59", f"key_{'0' * 26}", None],
            ["2026-01-01T00:00:00+00:00", "x\ud800", None],
            [[], 1, 2],
        )
    ),
]
BODIES = [
    *(b"", b"[]", b'{"name":"\\ud800"}', b'{"name":"a\\u0000"}', b'{"name":"x","expires_in_seconds":1e400}'),
    *(b'{"name":"x","expires_in_seconds":1.5}', b'{"name":"x","name":"y"}', b"[" * 40, b"\xff", b'{"name":["x"]}'),
]


def test_hostile_words_are_refused_wherever_they_stand(house: House) -> None:
    bearing = {"Authorization": f"Bearer {house.secrets['alice'][Scope.ADMIN]}"}
    answers: list[httpx2.Response] = []
    for word in HOSTILE:
        if "\x00" not in word:  # which no client puts into an address as it is
            answers += [house.http.request(method, f"/v1/keys/{word}", headers=bearing) for method in ("GET", "DELETE")]
        answers += [
            house.http.get(path, params={"page_token": word}, headers=bearing) for path in ("/v1/keys", "/v1/audit")
        ]
        answers.append(house.http.get("/v1/usage", headers={"Authorization": f"Bearer {word}".encode()}))
    typed = {**bearing, "Content-Type": "application/json"}
    answers += [house.http.post("/v1/keys", content=body, headers=typed) for body in BODIES]
    told = [(answer.status_code, str(answer.url)[:80]) for answer in answers if not 400 <= answer.status_code < 500]
    # The last moment there is, and an id as ours are, is a place like any other.
    assert told == [(200, url) for _, url in told]
    assert len(told) == 2
    assert len(answers) > 85
