"""Files of users: what comes in, what is refused, and that nothing is left of the latter."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.testclient import TestClient

from search.files import Files
from service.app import create_app
from service.checker import DirectChecker
from service.routes.uploads import Intake
from service.settings import Settings
from service.store.accounts import SqlTenants
from service.store.engine import latest_revision
from service.store.ledger import SqlLedger
from service.store.record import SqlRecord
from service.store.values import DEFAULT, Caller, Quota, Scope
from tests.search.headers import CORPUS, good
from tests.service.served import SPEC, client_of, digest, in_threads, listening, succeeded
from tests.service.test_tenancy import Willing
from workers.artifacts import FolderArtifacts
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import PIECE, JobState
from workers.uploads import Uploaded

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start

NOBODYS = f"upl_{'0' * 26}"


@dataclass
class Door:
    """A server, its artifacts on a disk, and its client."""

    app: FastAPI
    http: TestClient
    engine: Engine
    stored: Path
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "application/octet-stream"})

    def declare(self, content: bytes, **changes: Any) -> str:
        body = {"bytes": len(content), "sha256": digest(content)} | changes
        answer = self.http.post("/v1/uploads", json=body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def send(self, upload_id: str, content: bytes, **headers: str) -> httpx2.Response:
        sent = {**self.headers, **headers}
        answer: httpx2.Response = self.http.put(f"/v1/uploads/{upload_id}/content", content=content, headers=sent)
        return answer

    def uploaded(self, content: bytes) -> str:
        upload_id = self.declare(content)
        assert self.send(upload_id, content).status_code == 200
        return upload_id

    def files(self) -> list[str]:
        """All that lies among the artifacts."""
        return sorted(path.name for path in self.stored.rglob("*") if path.is_file())


def opened(engine: Engine, home: Path, **settings: Any) -> FastAPI:
    artifacts = FolderArtifacts(home / "artifacts")
    files = Files(home / "cache", (), Uploaded(artifacts))
    decided = Settings(home=home, auth="off", **settings)
    record = SqlRecord(engine)
    return create_app(decided, record, artifacts, DirectChecker(files), schema_version=latest_revision())


@pytest.fixture
def door(engine: Engine, tmp_path: Path) -> Iterator[Door]:
    app = opened(engine, tmp_path)
    with client_of(app) as http:
        yield Door(app, http, engine, tmp_path / "artifacts")


@pytest.fixture
def one(sqlite: Engine, tmp_path: Path) -> Iterator[Door]:
    """On SQLite, where the database does not matter."""
    app = opened(sqlite, tmp_path)
    with client_of(app) as http:
        yield Door(app, http, sqlite, tmp_path / "artifacts")


def refused(answer: httpx2.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


def test_an_upload_is_declared_sent_shown_and_deleted(door: Door) -> None:
    content = good(3 * PIECE)
    upload_id = door.declare(content)
    shown = door.http.get(f"/v1/uploads/{upload_id}").json()
    assert shown["completed_at"] is None
    assert (shown["bytes"], shown["sha256"]) == (len(content), digest(content))
    sent = door.send(upload_id, content)
    assert sent.status_code == 200
    assert sent.json() == door.http.get(f"/v1/uploads/{upload_id}").json()
    assert sent.json()["completed_at"]
    assert sent.json()["weights"] == f"upload:{upload_id}"
    assert door.files() == [f"{upload_id}.json", f"{upload_id}.safetensors"]
    assert (door.stored / "uploads" / f"{upload_id}.safetensors").read_bytes() == content
    assert refused(door.send(upload_id, content)) == (409, "CONFLICT")
    for _ in range(2):
        assert door.http.delete(f"/v1/uploads/{upload_id}").status_code == 204
    assert door.files() == []
    assert door.http.get(f"/v1/uploads/{upload_id}").status_code == 404
    assert refused(door.send(upload_id, content)) == (404, "NOT_FOUND")
    assert door.http.get("/v1/uploads").json()["uploads"] == []


def test_uploads_are_listed_page_by_page(door: Door) -> None:
    made = [door.declare(good(4 * number)) for number in range(1, 6)]
    seen, token = [], ""
    while True:
        page = door.http.get("/v1/uploads", params={"page_size": 2, "page_token": token}).json()
        seen += [upload["id"] for upload in page["uploads"]]
        token = page["next_page_token"]
        if not token:
            break
    assert seen == made[::-1]


def test_the_same_declaration_twice_is_one_upload(door: Door) -> None:
    content, headers = good(), {"Idempotency-Key": "once"}
    body = {"bytes": len(content), "sha256": digest(content)}
    answers = [door.http.post("/v1/uploads", json=body, headers=headers) for _ in range(3)]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers] == [None, "true", "true"]
    other = door.http.post("/v1/uploads", json=body | {"bytes": 5}, headers=headers)
    assert refused(other) == (422, "IDEMPOTENCY_KEY_REUSED")
    door.http.delete(f"/v1/uploads/{answers[0].json()['id']}")
    assert refused(door.http.post("/v1/uploads", json=body, headers=headers)) == (422, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"sha256": "0" * 64}, "/bytes"),
        ({"bytes": 0, "sha256": "0" * 64}, "/bytes"),
        ({"bytes": -1, "sha256": "0" * 64}, "/bytes"),
        ({"bytes": 2**31 + 1, "sha256": "0" * 64}, "/bytes"),
        ({"bytes": 10**30, "sha256": "0" * 64}, "/bytes"),
        ({"bytes": 1.5, "sha256": "0" * 64}, "/bytes"),
        ({"bytes": "10", "sha256": "0" * 64, "name": "../x"}, "/name"),
        ({"bytes": 10, "sha256": "0" * 63}, "/sha256"),
        ({"bytes": 10, "sha256": "G" * 64}, "/sha256"),
        ({"bytes": 10, "sha256": "0" * 64 + "\n"}, "/sha256"),
        ({"bytes": 10, "sha256": "../../" + "0" * 58}, "/sha256"),
        ([], ""),
    ],
)
def test_a_declaration_that_cannot_be_is_pointed_at(one: Door, body: Any, pointer: str) -> None:
    answer = one.http.post("/v1/uploads", json=body)
    assert refused(answer) == (422, "INVALID")
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


def test_what_is_no_weights_is_refused_and_leaves_nothing(one: Door) -> None:
    """The whole corpus, each declared as what it is; afterwards the same upload takes no other file, and is there."""
    for label, content in CORPUS.items():
        upload_id = one.declare(content)
        answer = one.send(upload_id, content)
        assert refused(answer) == (422, "WEIGHTS_UNUSABLE"), label
        assert answer.json()["errors"][0]["pointer"] == "", label
        assert one.files() == [], label
        assert one.http.get(f"/v1/uploads/{upload_id}").json()["completed_at"] is None, label
    assert len(CORPUS) >= 90


def test_what_is_not_the_file_that_was_declared_may_be_sent_again(door: Door) -> None:
    content = good(100)
    upload_id = door.declare(content)
    for other, code in (
        (content[:-1], "UPLOAD_DIFFERS"),
        (content + b"\0", "UPLOAD_DIFFERS"),
        (content[:-1] + b"\1", "UPLOAD_DIFFERS"),
        (b"", "UPLOAD_DIFFERS"),
        (b"PK\3\4" + content[4:], "WEIGHTS_UNUSABLE"),
    ):
        assert refused(door.send(upload_id, other)) == (422, code)
        assert door.files() == []
    assert door.send(upload_id, content).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "application/json"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "text/plain"},
        {"Content-Type": ""},
        {"Content-Encoding": "gzip"},
        {"Content-Encoding": "br"},
    ],
)
def test_only_bytes_as_they_are_are_taken(one: Door, headers: dict[str, str]) -> None:
    content = good()
    assert refused(one.send(one.declare(content), content, **headers)) == (415, "UNSUPPORTED_MEDIA_TYPE")


UP = [
    "../",
    "..%2f",
    "%2e%2e/",
    "%2e%2e%2f",
    "..%252f",
    "%252e%252e%252f",
    "..\\",
    "..%5c",
    "..%c0%af",
    "..%ef%bc%8f",
    "..;/",
]
WAYS = [way * count + "etc/passwd" for way in UP for count in (1, 3, 8)]
WAYS += ["/etc/passwd", "//etc/passwd", "file:///etc/passwd", "%00", "a%00.safetensors", ".", "..", "%2e", "~", "$HOME"]
WAYS += [
    f"{NOBODYS}%2f..%2f..",
    f"{NOBODYS}/../../keys",
    f"{NOBODYS}%23",
    f"{NOBODYS}%3f",
    f"{NOBODYS}%0a",
    NOBODYS.upper(),
]


@pytest.mark.parametrize("kind", ["uploads", "teachers", "datasets"])
def test_no_way_out_leads_through_an_id(one: Door, kind: str) -> None:
    content = good()
    upload_id = one.uploaded(content)
    before = one.files()
    answers = []
    for way in WAYS:
        answers += [one.http.request(method, f"/v1/{kind}/{way}") for method in ("GET", "DELETE")]
        answers.append(one.http.put(f"/v1/{kind}/{way}/content", content=content, headers=one.headers))
        answers.append(one.http.get(f"/v1/{kind}/{way}/report"))
    told = {answer.status_code for answer in answers if answer.status_code != 200}
    assert told <= {404, 405}, "each is no id, or no route"
    led = {answer.url.path for answer in answers if answer.status_code == 200}
    assert led <= {"/v1/keys", f"/v1/{kind}"}, "which the client itself makes of dots"
    assert one.files() == before == [f"{upload_id}.json", f"{upload_id}.safetensors"]
    assert len(WAYS) * 12 > 500


def test_other_bodies_stay_small(one: Door) -> None:
    large = b" " * (256 * 1024 + 1)
    for method, path in (
        ("POST", "/v1/uploads"),
        ("POST", "/v1/teachers"),
        ("POST", "/v1/datasets"),
        ("POST", "/v1/jobs"),
    ):
        answer = one.http.request(method, path, content=large, headers={"Content-Type": "application/json"})
        assert refused(answer) == (413, "BODY_TOO_LARGE"), path
    assert one.uploaded(good(2**20))


def test_what_a_tenant_may_store_counts_uploads(door: Door) -> None:
    SqlTenants(door.engine, "test").limit(DEFAULT, {Quota.STORED_BYTES: 1000})
    first, second, third = good(400), good(500), good(300)
    a, b, c = (door.declare(content) for content in (first, second, third))
    assert door.send(a, first).status_code == 200
    assert door.http.get("/v1/usage").json()["quotas"]["stored_bytes"]["used"] == len(first)
    assert refused(door.send(b, second)) == (429, "QUOTA_STORED_BYTES")
    assert door.files() == [f"{a}.json", f"{a}.safetensors"]
    body = {"bytes": 800, "sha256": "0" * 64}
    assert refused(door.http.post("/v1/uploads", json=body)) == (429, "QUOTA_STORED_BYTES")
    assert refused(door.http.post("/v1/uploads", json=body | {"bytes": 1001})) == (422, "BEYOND_QUOTA")
    assert door.send(c, third).status_code == 200
    door.http.delete(f"/v1/uploads/{a}")
    assert door.http.get("/v1/usage").json()["quotas"]["stored_bytes"]["used"] == len(third)
    assert door.send(b, second).status_code == 429
    door.http.delete(f"/v1/uploads/{c}")
    assert door.send(b, second).status_code == 200


def test_of_two_who_send_at_once_one_has_sent_it(door: Door) -> None:
    content = good(PIECE)
    upload_id = door.declare(content)
    with listening(door.app) as url, httpx2.Client(base_url=url) as http:

        def send(_: int) -> int:
            return http.put(f"/v1/uploads/{upload_id}/content", content=content, headers=door.headers).status_code

        answers = in_threads(4, send)
    assert sorted(answers) == [200, 409, 409, 409]
    assert door.files() == [f"{upload_id}.json", f"{upload_id}.safetensors"]


def test_a_job_may_name_ones_own_complete_upload_and_no_other(engine: Engine, tmp_path: Path) -> None:
    record, artifacts = SqlRecord(engine), MemoryArtifacts()
    SqlTenants(engine, "test").create("bob")
    bob = record.uploads(Caller("bob", "test", Scope.ADMIN))
    bobs = bob.declare(10, "0" * 64)[0].id
    bob.complete(bobs)
    app = create_app(
        Settings(home=tmp_path, auth="off"), record, artifacts, Willing(), schema_version=latest_revision()
    )
    mine = record.uploads(Caller(DEFAULT, "test", Scope.ADMIN))
    complete, open_, gone = (mine.declare(10, "0" * 64)[0].id for _ in range(3))
    for upload_id in (complete, gone):
        mine.complete(upload_id)
    mine.delete(gone)
    with client_of(app) as http:

        def submit(upload_id: str, path: str = "/v1/jobs") -> httpx2.Response:
            weights = {"weights": f"upload:{upload_id}"}
            answer: httpx2.Response = http.post(path, json=SPEC | {"teacher": SPEC["teacher"] | weights})
            return answer

        told = set()
        for upload_id in (bobs, open_, gone, NOBODYS, "upl_", "../../etc/passwd"):
            for path in ("/v1/jobs", "/v1/jobs?validate_only=true"):
                answer = submit(upload_id, path)
                assert refused(answer) == (422, "INVALID")
                assert [error["pointer"] for error in answer.json()["errors"]] == ["/teacher/weights"]
                told.add(answer.json()["detail"].replace(f"`{upload_id}`", "ID"))
        assert len(told) == 1, "nobody learns which"
        job = submit(complete)
        assert job.status_code == 201
        assert refused(http.delete(f"/v1/uploads/{complete}")) == (409, "CONFLICT")
        http.post(f"/v1/jobs/{job.json()['id']}:cancel")
        assert http.delete(f"/v1/uploads/{complete}").status_code == 204
        cloned = http.post(f"/v1/jobs/{job.json()['id']}:clone", json={})
        assert refused(cloned) == (422, "INVALID"), "nor is it there for a repeat"


def test_an_upload_that_goes_while_a_job_is_submitted_is_refused(engine: Engine, tmp_path: Path) -> None:
    """Between the check and the transaction that puts the job on record."""
    record = SqlRecord(engine)
    mine = record.uploads(Caller(DEFAULT, "test", Scope.ADMIN))
    upload_id = mine.declare(10, "0" * 64)[0].id
    mine.complete(upload_id)

    class Slow(Willing):
        def check(self, spec: Any) -> dict[str, Any]:
            mine.delete(upload_id)
            return super().check(spec)

    settings = Settings(home=tmp_path, auth="off")
    app = create_app(settings, record, MemoryArtifacts(), Slow(), schema_version=latest_revision())
    with client_of(app) as http:
        weights = {"weights": f"upload:{upload_id}"}
        assert refused(http.post("/v1/jobs", json=SPEC | {"teacher": SPEC["teacher"] | weights})) == (422, "INVALID")
        assert http.get("/v1/jobs").json()["jobs"] == []
    assert SqlLedger(engine).claim("driver", 10) is None


def raw(url: str, request: bytes, *, then: bytes = b"", close: bool = False) -> bytes:
    """What a server answers to bytes as they are."""
    place = urlsplit(url)
    with socket.create_connection((str(place.hostname), int(place.port or 0)), timeout=5) as wire:
        wire.sendall(request)
        if then:
            wire.sendall(then)
        if close:
            wire.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(TimeoutError):
            while more := wire.recv(65536):
                answer += more
                if b"\r\n\r\n" in answer and not close:
                    break
    return answer


FOLLOWING = b"GET /v1/keys HTTP/1.1\r\nHost: evil\r\n\r\n"
"""Which is another request, and no part of the body before it."""


def test_a_request_that_lies_about_its_length_is_refused(one: Door) -> None:
    """As bytes on a real connection, where a client library would not let us."""
    content = good(100)
    size = len(content)
    lines: dict[str, tuple[list[bytes], bytes, set[int]]] = {
        "in chunks": ([b"Transfer-Encoding: chunked"], b"%x\r\n%s\r\n0\r\n\r\n" % (size, content), {411}),
        "in chunks, with a length": (
            [b"Content-Length: %d" % size, b"Transfer-Encoding: chunked"],
            b"%x\r\n%s\r\n0\r\n\r\n" % (size, content),
            {400, 411},
        ),
        "without a length": ([], b"", {411}),
        "two lengths": ([b"Content-Length: %d" % size, b"Content-Length: %d" % (size + 1)], content, {400}),
        "a list of lengths": ([b"Content-Length: %d, %d" % (size, size + 1)], content, {400}),
        "a negative length": ([b"Content-Length: -1"], content, {400}),
        "a length in hexadecimal": ([b"Content-Length: 0x10"], content, {400}),
        "a length with a sign": ([b"Content-Length: +%d" % size], content, {400}),
        "a length of a word": ([b"Content-Length: many"], content, {400}),
        "a length of 100 digits": ([b"Content-Length: " + b"9" * 100], content, {400, 413}),
        "a length of 2^63": ([b"Content-Length: %d" % 2**63], content, {400, 413, 422}),
        "a length of one more": ([b"Content-Length: %d" % (size + 1)], content + b"\0", {422}),
        "a length of one less": ([b"Content-Length: %d" % (size - 1)], content[:-1], {422}),
        "a length of nothing": ([b"Content-Length: 0"], b"", {422}),
    }
    with listening(one.app) as url:
        upload_id = one.declare(content)
        for label, (headers, body, expected) in lines.items():
            asked = [b"PUT /v1/uploads/%s/content HTTP/1.1" % upload_id.encode(), b"Host: localhost", *headers]
            asked += [b"Content-Type: application/octet-stream", b"", b""]
            answer = raw(url, b"\r\n".join(asked), then=body)
            assert int(answer.split(b" ")[1]) in expected, (label, answer[:200])
            assert one.files() == [], label
        ended = [b"PUT /v1/uploads/%s/content HTTP/1.1" % upload_id.encode(), b"Host: localhost"]
        ended += [b"Content-Type: application/octet-stream", b"Content-Length: %d" % size, b"", b""]
        assert raw(url, b"\r\n".join(ended), then=content[:50], close=True)[:12] in (b"", b"HTTP/1.1 400")
        assert raw(url, b"\r\n".join(ended), close=True)[:12] in (b"", b"HTTP/1.1 400")
        while not (more := raw(url, b"\r\n".join(ended), then=content + FOLLOWING)).startswith(b"HTTP/1.1 200"):
            assert more.startswith(b"HTTP/1.1 409"), "until the server has noticed that the one before has left"
            time.sleep(0.05)
    assert one.files() == [f"{upload_id}.json", f"{upload_id}.safetensors"]


def test_who_sends_too_slowly_or_when_all_places_are_taken_is_sent_away(sqlite: Engine, tmp_path: Path) -> None:
    app = opened(sqlite, tmp_path, request_seconds=0.5)
    with client_of(app) as http:
        _crowd(Door(app, http, sqlite, tmp_path / "artifacts"))


def _crowd(one: Door) -> None:
    one.app.state.intake = Intake(places=1)
    content = good(100)
    slow, other = one.declare(content), one.declare(content)
    with listening(one.app) as url, httpx2.Client(base_url=url, headers=one.headers) as http:
        asked = [b"PUT /v1/uploads/%s/content HTTP/1.1" % slow.encode(), b"Host: localhost"]
        asked += [b"Content-Type: application/octet-stream", b"Content-Length: %d" % len(content), b"", b""]

        def both(number: int) -> Any:
            if number == 0:
                return raw(url, b"\r\n".join(asked), then=content[:30])
            time.sleep(0.2)
            return http.put(f"/v1/uploads/{other}/content", content=content)

        timed_out, turned_away = in_threads(2, both)
        assert timed_out.startswith(b"HTTP/1.1 408")
        assert refused(turned_away) == (503, "BUSY")
        assert one.files() == []
        assert http.put(f"/v1/uploads/{other}/content", content=content).status_code == 200, "the place is free again"


def test_an_upload_is_never_whole_in_memory(one: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[int] = []
    put = FolderArtifacts.put_pieces

    def watched(self: Any, key: str, coming: Any, accept: Any) -> Any:
        def seen() -> Iterator[bytes]:
            for piece in coming:
                pieces.append(len(piece))
                yield piece

        return put(self, key, seen(), accept)

    monkeypatch.setattr(FolderArtifacts, "put_pieces", watched)
    content = good(12 * PIECE)
    upload_id = one.declare(content)
    with listening(one.app) as url:
        assert (
            httpx2.put(f"{url}/v1/uploads/{upload_id}/content", content=content, headers=one.headers).status_code == 200
        )
    assert sum(pieces[:-1]) == len(content), "the last is the note beside it"
    assert max(pieces) < 2 * PIECE


def test_the_checker_reads_an_upload_and_a_job_learns_from_it(one: Door) -> None:
    """From POST to the plan, through the artifacts and the cache."""
    from search.teachers.small import SmallResNet
    from search.teachers.weights import save_weights

    options = SPEC["teacher"]["options"]
    weights = save_weights(SmallResNet(SmallResNet.Options(**options)).build((3, 16, 16), 10))
    upload_id = one.uploaded(weights)
    spec = SPEC | {"teacher": SPEC["teacher"] | {"weights": f"upload:{upload_id}"}}
    assert one.http.post("/v1/jobs?validate_only=true", json=spec).status_code == 200
    cached = one.stored.parent / "cache" / "uploads" / f"{digest(weights)}.safetensors"
    assert cached.read_bytes() == weights
    other = spec | {"teacher": spec["teacher"] | {"options": {"depth": 2, "width": 8}}}
    answer = one.http.post("/v1/jobs?validate_only=true", json=other)
    assert refused(answer) == (422, "WEIGHTS_UNUSABLE")
    assert answer.json()["errors"][0]["pointer"] == "/teacher/weights"
    cached.unlink()
    (one.stored / "uploads" / f"{upload_id}.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    answer = one.http.post("/v1/jobs?validate_only=true", json=spec)
    assert refused(answer) == (500, "VERIFICATION_FAILED"), "what the disk has spoilt is not taught from"


def test_ranges_by_the_thousand_are_answered_soon(tmp_path: Path) -> None:
    """Ranges are not offered, so none is worked out (CVE-2025-62727)."""
    from tests.service.served import WEIGHTS, make_app

    ledger, artifacts = MemoryLedger(), MemoryArtifacts()
    job_id = succeeded(ledger, artifacts)
    assert ledger.job(job_id).state is JobState.SUCCEEDED
    address = f"/v1/jobs/{job_id}/artifacts/student/weights.safetensors/content"
    with client_of(make_app(tmp_path, ledger, artifacts)) as http:
        http.get(address)
        for ranges in ("bytes=" + ",".join(["0-"] * 10_000), "bytes=0-,-0,0-0,5-1,-", "bytes=0-2"):
            began = time.perf_counter()
            answer = http.get(address, headers={"Range": ranges})
            assert time.perf_counter() - began < 0.5
            assert (answer.status_code, answer.content) == (200, WEIGHTS)
            assert answer.headers["accept-ranges"] == "none"
    assert hashlib.sha256(answer.content).hexdigest() == digest(WEIGHTS)
