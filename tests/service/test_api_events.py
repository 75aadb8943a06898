"""What happens to a job, told page by page and live."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import Engine, event, update
from starlette.testclient import TestClient

from search.spec import read_spec
from service import serve
from service.app import create_app
from service.lookout import LOOK_SECONDS
from service.routes import events as events_module
from service.settings import Settings
from service.store.engine import latest_revision, writing
from service.store.record import SqlRecord
from service.store.tables import keys, now
from service.store.values import Scope
from tests.databases import WholeLedger
from tests.service.receiver import wait_until
from tests.service.served import SPEC, claimed, client_of, listening, make_app, submitted, succeeded, taught
from tests.service.test_tenancy import Willing
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import Claim, JobState

LIVE = {"Accept": "text/event-stream"}


@pytest.fixture
def ledger() -> MemoryLedger:
    return MemoryLedger()


@pytest.fixture
def app(tmp_path: Path, ledger: MemoryLedger) -> FastAPI:
    return make_app(tmp_path, ledger)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with client_of(app) as client:
        yield client


def told(text: str) -> list[dict[str, str]]:
    """Server-sent events of a stream, comments left out."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]


def test_pages_hold_every_event_once(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = succeeded(ledger, MemoryArtifacts())
    seen: list[dict[str, Any]] = []
    after = 0
    while True:
        page = client.get(f"/v1/jobs/{job_id}/events?after={after}&limit=4").json()
        if not page["events"]:
            break
        seen += page["events"]
        after = page["next_after"]
    assert [event["seq"] for event in seen] == list(range(1, len(seen) + 1))
    assert (seen[0]["kind"], seen[-1]["kind"]) == ("JOB_QUEUED", "JOB_SUCCEEDED")
    assert page["next_after"] == after == len(seen)


def test_a_stream_of_an_ended_job_tells_all_and_ends(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = succeeded(ledger, MemoryArtifacts())
    answer = client.get(f"/v1/jobs/{job_id}/events", headers=LIVE)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    retry, *found = told(answer.text)
    assert retry == {"retry": "2000"}
    page = client.get(f"/v1/jobs/{job_id}/events").json()["events"]
    assert [json.loads(event["data"]) for event in found] == page
    assert [(event["id"], event["event"]) for event in found] == [(str(event["seq"]), event["kind"]) for event in page]


def test_a_stream_goes_on_after_the_last_event_seen(client: TestClient, ledger: MemoryLedger) -> None:
    job_id = succeeded(ledger, MemoryArtifacts())
    last = client.get(f"/v1/jobs/{job_id}/events").json()["next_after"]
    for seen in (1, 5, last - 1):
        answer = client.get(f"/v1/jobs/{job_id}/events", headers=LIVE | {"Last-Event-ID": str(seen)})
        assert [int(event["id"]) for event in told(answer.text)[1:]] == list(range(seen + 1, last + 1))
    by_query = client.get(f"/v1/jobs/{job_id}/events?after=5", headers=LIVE)
    assert [int(event["id"]) for event in told(by_query.text)[1:]] == list(range(6, last + 1))
    for seen in (last, last + 1000):
        answer = client.get(f"/v1/jobs/{job_id}/events", headers=LIVE | {"Last-Event-ID": str(seen)})
        assert (answer.status_code, answer.content) == (204, b""), "a browser then stops coming back"


@pytest.mark.parametrize("last", ["x", "-1", "1.5", "9" * 16, "1\u0660", ""])
def test_a_last_event_id_that_is_none_of_ours(client: TestClient, ledger: MemoryLedger, last: str) -> None:
    headers: Any = LIVE | {"Last-Event-ID": last.encode()}
    answer = client.get(f"/v1/jobs/{submitted(ledger)}/events", headers=headers)
    assert (answer.status_code, answer.json()["errors"][0]["location"]) == (422, "header")


def test_an_unknown_job_has_no_stream(client: TestClient) -> None:
    assert client.get("/v1/jobs/job_01ke7bq8k0f7m2s5v9x3y6z1ab/events", headers=LIVE).status_code == 404


class Listener:
    """A client of a stream, in a thread."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self.lines: list[str] = []
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(url, headers))
        self._thread.start()

    def _listen(self, url: str, headers: dict[str, str]) -> None:
        with httpx2.stream("GET", url, headers=headers, timeout=10) as answer:
            for line in answer.iter_lines():
                self.lines.append(line)
        self.ended.set()

    @property
    def kinds(self) -> list[str]:
        return [line.removeprefix("event: ") for line in self.lines if line.startswith("event: ")]

    def wait_for(self, line: str) -> None:
        deadline = time.monotonic() + 8
        while line not in self.lines:
            assert time.monotonic() < deadline, f"no {line!r} among {self.lines}"
            time.sleep(0.02)

    def join(self) -> None:
        self._thread.join()


@pytest.mark.timeout(30)
def test_events_arrive_as_they_happen_until_the_last(app: FastAPI, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger)
    with listening(app) as url:
        listener = Listener(f"{url}/v1/jobs/{job_id}/events", LIVE)
        listener.wait_for("event: JOB_QUEUED")
        assert app.state.streams.open == 1
        claim: Claim = claimed(ledger)
        listener.wait_for("event: JOB_CLAIMED")
        taught(ledger, claim)
        listener.wait_for("event: PHASE_FINISHED")
        assert not listener.ended.is_set()
        ledger.close(claim, JobState.FAILED, "TRIAL_FAILED: every trial failed")
        listener.join()
    assert listener.ended.is_set()
    assert listener.kinds[-1] == "JOB_FAILED"
    assert app.state.streams.open == 0


@pytest.mark.timeout(30)
def test_a_quiet_stream_is_kept_alive_and_an_invented_place_in_it_ends(
    app: FastAPI, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events_module, "PING_SECONDS", 0.2)
    job_id = submitted(ledger)
    with listening(app) as url:
        honest = Listener(f"{url}/v1/jobs/{job_id}/events", LIVE)
        ahead = Listener(f"{url}/v1/jobs/{job_id}/events", LIVE | {"Last-Event-ID": "1000"})
        honest.wait_for(": ping")
        ahead.wait_for(": ping")
        ledger.request_cancel(job_id)
        honest.join()
        ahead.join()
    assert honest.kinds == ["JOB_QUEUED", "CANCEL_REQUESTED", "JOB_CANCELLED"]
    assert ahead.kinds == []


@pytest.mark.timeout(30)
def test_streams_end_when_the_server_is_about_to(app: FastAPI, ledger: MemoryLedger) -> None:
    job_id = submitted(ledger)
    with listening(app) as url:
        listener = Listener(f"{url}/v1/jobs/{job_id}/events", LIVE)
        listener.wait_for("event: JOB_QUEUED")
        app.state.draining.set()
        listener.join()
    assert listener.ended.is_set()


@pytest.mark.timeout(30)
def test_there_are_only_so_many_streams_and_a_client_that_leaves_makes_room(
    tmp_path: Path, ledger: MemoryLedger
) -> None:
    app = make_app(tmp_path, ledger, event_streams=1)
    job_id = submitted(ledger)
    with listening(app) as url, httpx2.Client(timeout=10) as http:
        address = f"{url}/v1/jobs/{job_id}/events"
        with http.stream("GET", address, headers=LIVE) as first:
            lines = first.iter_lines()  # held on to: a generator that is dropped closes the stream
            next(lines)
            refused = http.get(address, headers=LIVE)
            assert (refused.status_code, refused.json()["code"]) == (503, "BUSY")
            assert http.get(address).status_code == 200, "pages go on"
        deadline = time.monotonic() + 8
        while app.state.streams.open:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with http.stream("GET", address, headers=LIVE) as again:
            assert again.status_code == 200


@pytest.mark.timeout(30)
def test_a_record_that_goes_away_ends_the_stream_and_it_can_go_on(
    app: FastAPI, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    from search.errors import StoreUnavailable

    job_id = submitted(ledger)
    events, away = ledger.events, threading.Event()

    def unreliable(*place: Any) -> Any:
        if away.is_set():
            raise StoreUnavailable("the database restarts")
        return events(*place)

    monkeypatch.setattr(ledger, "events", unreliable)
    with listening(app) as url:
        listener = Listener(f"{url}/v1/jobs/{job_id}/events", LIVE)
        listener.wait_for("event: JOB_QUEUED")
        away.set()
        listener.join()
        away.clear()
        ledger.request_cancel(job_id)
        again = Listener(f"{url}/v1/jobs/{job_id}/events", LIVE | {"Last-Event-ID": "1"})
        again.join()
    assert again.kinds == ["CANCEL_REQUESTED", "JOB_CANCELLED"]


def counted(engine: Engine) -> list[str]:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda c, u, statement, *_: statements.append(statement))
    return statements


def app_over(engine: Engine, home: Path, **settings: Any) -> FastAPI:
    checker = Willing()
    return create_app(
        Settings(home=home, **settings), SqlRecord(engine), MemoryArtifacts(), checker, schema_version=latest_revision()
    )


@pytest.mark.timeout(60)
def test_fifty_idle_clients_cost_one_look_at_a_time(sqlite: Engine, tmp_path: Path) -> None:
    app, ledger = app_over(sqlite, tmp_path, auth="off"), WholeLedger(sqlite)
    ids = [ledger.submit(read_spec(SPEC))[0].id for _ in range(50)]
    with listening(app) as url, ExitStack() as open_ones:
        place = ("127.0.0.1", int(url.rpartition(":")[2]))
        clients = [open_ones.enter_context(socket.create_connection(place, timeout=10)) for _ in ids]
        for client, job_id in zip(clients, ids, strict=True):
            client.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n".encode())
            client.sendall(b"Accept: text/event-stream\r\n\r\n")
        for client in clients:
            read_to(client, b"event: JOB_QUEUED")
        time.sleep(0.5)
        statements = counted(sqlite)
        time.sleep(1.5)
        looks = [statement for statement in statements if statement.startswith("SELECT")]
        assert 1 <= len(looks) <= 1.5 / LOOK_SECONDS + 1
        ledger.request_cancel(ids[7])
        read_to(clients[7], b"event: JOB_CANCELLED")
        for client in clients[:7]:
            client.setblocking(False)
            with suppress(BlockingIOError):
                assert b"event" not in client.recv(65_536), "nobody else is told"


def read_to(client: socket.socket, words: bytes) -> None:
    seen = b""
    while words not in seen:
        piece = client.recv(65_536)
        assert piece, seen
        seen += piece


@pytest.mark.timeout(30)
def test_a_stream_goes_on_after_the_server_was_started_anew(sqlite: Engine, tmp_path: Path) -> None:
    ledger, seen = WholeLedger(sqlite), list[str]()
    job_id = ledger.submit(read_spec(SPEC))[0].id
    claim = ledger.claim("driver", 1000)
    assert claim is not None
    for restart in range(3):
        with listening(app_over(sqlite, tmp_path, auth="off")) as url:
            place = {"Last-Event-ID": seen[-1]} if seen else {}
            listener = Listener(f"{url}/v1/jobs/{job_id}/events", LIVE | place)
            ledger.note(claim, "PROGRESS", {"restart": restart})
            listener.wait_for("event: PROGRESS")
        listener.join()
        assert "retry: 2000" in listener.lines, "so that a browser comes back by itself"
        seen += [line.removeprefix("id: ") for line in listener.lines if line.startswith("id: ")]
        ledger.note(claim, "PROGRESS", {"while": "nobody was there"})
    known = [str(event.seq) for event in ledger.events(job_id)]
    assert seen == known[:-1], "each once and none left out; the last was not told to anybody"


@pytest.mark.timeout(30)
def test_a_key_has_so_many_streams_and_others_have_theirs(sqlite: Engine, tmp_path: Path) -> None:
    app, ledger = app_over(sqlite, tmp_path, key_streams=2), WholeLedger(sqlite)
    job_id = ledger.submit(read_spec(SPEC))[0].id
    keys = [{"Authorization": f"Bearer {ledger.account.create_key('k', Scope.READ)[1]}"} for _ in range(2)]
    with listening(app) as url, httpx2.Client(timeout=10) as http:
        address = f"{url}/v1/jobs/{job_id}/events"
        listeners = [Listener(address, LIVE | keys[0]) for _ in range(2)]
        for listener in listeners:
            listener.wait_for("event: JOB_QUEUED")
        refused = http.get(address, headers=LIVE | keys[0])
        assert (refused.status_code, refused.json()["code"]) == (429, "TOO_MANY_STREAMS")
        assert int(refused.headers["retry-after"]) > 0
        assert http.get(address, headers=keys[0]).status_code == 200, "pages go on"
        other = Listener(address, LIVE | keys[1])
        other.wait_for("event: JOB_QUEUED")
        ledger.request_cancel(job_id)
        for listener in (*listeners, other):
            listener.join()
    assert app.state.streams.open == 0


@pytest.mark.timeout(30)
@pytest.mark.parametrize("how", ["revoked", "over"])
def test_a_stream_ends_with_the_key_that_it_was_opened_with(
    how: str, sqlite: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert events_module.PING_SECONDS <= 15
    monkeypatch.setattr(events_module, "PING_SECONDS", 0.2)
    app, ledger = app_over(sqlite, tmp_path), WholeLedger(sqlite)
    job_id = ledger.submit(read_spec(SPEC))[0].id
    key, secret = ledger.account.create_key("k", Scope.READ)
    with listening(app) as url:
        listener = Listener(f"{url}/v1/jobs/{job_id}/events", LIVE | {"Authorization": f"Bearer {secret}"})
        listener.wait_for(": ping")
        assert not listener.ended.is_set()
        if how == "revoked":
            ledger.account.revoke_key(key.id)
        else:
            with writing(sqlite) as connection:
                connection.execute(update(keys).where(keys.c.id == key.id).values(expires_at=now()))
        assert listener.ended.wait(5)
        listener.join()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="only Linux closes such connections")
@pytest.mark.timeout(30)
def test_a_client_that_stops_reading_is_cut_off_and_holds_nothing(
    tmp_path: Path, ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert events_module.STALLED_SECONDS <= serve.UNREAD_SECONDS <= 60
    monkeypatch.setattr(events_module, "STALLED_SECONDS", 0.3)
    monkeypatch.setattr(serve, "UNREAD_SECONDS", 1)
    settings = Settings(home=tmp_path, port=0, auth="off")
    app = make_app(tmp_path, ledger)
    job_id = submitted(ledger)
    claim = claimed(ledger)
    for _ in range(120):  # more than all buffers between the two take
        ledger.note(claim, "PROGRESS", {"text": "x" * 100_000})
    with serve._listening(settings) as listener, listening(app, listener) as url:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.getsockname())
            client.sendall(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n".encode())
            client.sendall(b"Accept: text/event-stream\r\n\r\n")
            wait_until(lambda: app.state.streams.open == 1)
            wait_until(lambda: app.state.streams.open == 0)
            port = listener.getsockname()[1]
            assert connections(port) == 1, "what was written is still in its buffers"
            wait_until(lambda: connections(port) == 0)
        assert httpx2.get(f"{url}/healthz").status_code == 200


def connections(port: int) -> int:
    """How many a server has at this moment, by the kernel's own list."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] in ("01", "04", "05") for row in rows)
