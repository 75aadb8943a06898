"""The client against a server that misbehaves on purpose, over real sockets."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.errors import UserError
from service import wire
from service.client import Client
from service.examples import CURVE, LOG, PARETO, SENSITIVITY, TIMELINE, TRIAL
from service.takehome import check_place, placing, safe_name
from service.wire import Backoff

JOB = json.loads((Path(__file__).parent / "golden" / "job.json").read_text())
ID = JOB["id"]
SPEC = {"teacher": {"name": "small_resnet"}, "dataset": {"name": "digits"}, "budget": {"macs": "25%"}}
SOON = Backoff(retries=2, first=0.01, longest=0.02)


@dataclass
class Reply:
    """`cut` ends the connection after so many bytes of the body, although more were promised."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Scripted:
    """Gives the replies one after the other, the last one for ever, and remembers what it was asked."""

    def __init__(self, replies: Sequence[Reply] | Callable[[Asked], Reply]) -> None:
        self.asked: list[Asked] = []
        self._replies = replies

    def reply(self, asked: Asked) -> Reply:
        self.asked.append(asked)
        if callable(self._replies):
            return self._replies(asked)
        return self._replies[min(len(self.asked), len(self._replies)) - 1]


@contextmanager
def serving(replies: Sequence[Reply] | Callable[[Asked], Reply], **options: Any) -> Iterator[tuple[Client, Scripted]]:
    script = Scripted(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = script.reply(Asked(self.command, self.path, headers, self.rfile.read(length)))
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.data)))
            self.end_headers()
            self.wfile.write(reply.data if reply.cut is None else reply.data[: reply.cut])
            if reply.cut is not None:
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        do_POST = do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        with Client(f"http://127.0.0.1:{server.server_port}", backoff=SOON, **options) as client:
            yield client, script
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def problem(status: int, code: str = "X", **more: Any) -> Reply:
    body = {"type": "/problems/x", "title": "T", "status": status, "detail": "what to do", "code": code, **more}
    return Reply(status, body, {"X-Request-Id": "req-7"})


def test_a_submission_sent_twice_has_one_key() -> None:
    with serving([Reply(201, b"{", cut=0), Reply(503, {}), Reply(201, JOB)]) as (client, script):
        assert client.jobs.create(SPEC).id == ID
    keys = [asked.headers["idempotency-key"] for asked in script.asked]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert json.loads(script.asked[-1].body) == SPEC


def test_two_submissions_have_two_keys_and_a_given_key_is_kept() -> None:
    with serving([Reply(201, JOB)]) as (client, script):
        client.jobs.create(SPEC)
        client.jobs.create(SPEC)
        client.jobs.create(SPEC, idempotency_key="mine")
    first, second, third = (asked.headers["idempotency-key"] for asked in script.asked)
    assert first != second
    assert third == "mine"


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_passing_refusal_is_asked_again_twice_and_then_raised(status: int) -> None:
    with serving([problem(status)]) as (client, script), pytest.raises(wire.StatusError) as caught:
        client.server()
    assert caught.value.status == status
    assert len(script.asked) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, wire.BadRequest),
        (401, wire.Unauthenticated),
        (403, wire.PermissionDenied),
        (404, wire.NotFound),
        (409, wire.Conflict),
        (422, wire.Invalid),
        (500, wire.ServerError),
        (507, wire.ServerError),
    ],
)
def test_a_lasting_refusal_is_raised_at_once_as_its_kind(status: int, kind: type[wire.StatusError]) -> None:
    errors = [{"pointer": "/search/trails", "code": "UNKNOWN_FIELD", "message": "unknown", "allowed": ["trials"]}]
    with serving([problem(status, "CODE", errors=errors)]) as (client, script), pytest.raises(kind) as caught:
        client.jobs.get(ID)
    assert type(caught.value) is kind
    assert len(script.asked) == 1
    error = caught.value
    assert (error.code, error.message, error.request_id) == ("CODE", "what to do", "req-7")
    assert (error.errors[0].pointer, error.errors[0].allowed) == ("/search/trails", ("trials",))


def test_a_key_used_for_another_spec_has_a_class_of_its_own() -> None:
    with serving([problem(422, "IDEMPOTENCY_KEY_REUSED")]) as (client, _), pytest.raises(wire.KeyReused):
        client.jobs.create(SPEC, idempotency_key="k")


def test_the_server_may_forbid_and_demand_another_attempt() -> None:
    forbidden = problem(503)
    forbidden.headers["X-Should-Retry"] = "false"
    with serving([forbidden]) as (client, script), pytest.raises(wire.ServerUnavailable):
        client.server()
    assert len(script.asked) == 1
    demanded = problem(409)
    demanded.headers["X-Should-Retry"] = "true"
    with serving([demanded, Reply(200, JOB)]) as (client, script):
        assert client.jobs.get(ID).id == ID
    assert len(script.asked) == 2


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_waited_for(form: str) -> None:
    busy = problem(429)
    until = datetime.now(UTC) + timedelta(seconds=2)
    busy.headers["Retry-After"] = "0.4" if form == "seconds" else format_datetime(until, usegmt=True)
    started = time.monotonic()
    with serving([busy, Reply(200, JOB)]) as (client, _):
        client.jobs.get(ID)
    assert time.monotonic() - started >= 0.4


def test_a_server_that_asks_for_more_than_two_minutes_is_not_waited_for() -> None:
    busy = problem(503)
    busy.headers["Retry-After"] = "3600"
    with serving([busy]) as (client, script), pytest.raises(wire.ServerUnavailable):
        client.server()
    assert len(script.asked) == 1


@given(attempt=st.integers(0, 10_000))
def test_pauses_grow_from_half_a_second_to_eight_and_are_never_in_step(attempt: int) -> None:
    longest = min(8.0, 0.5 * 2 ** min(attempt, 10))
    assert longest / 2 <= Backoff().pause(attempt) <= longest


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with Client(f"http://127.0.0.1:{port}", backoff=SOON) as client:
        assert not client.ready()
        with pytest.raises(wire.Unreachable, match=f"127.0.0.1:{port}"):
            client.server()


def test_a_server_that_says_nothing_is_not_waited_for_without_end() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        Client(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout=0.1, backoff=SOON) as client,
        pytest.raises(wire.TimedOut),
    ):
        client.server()


@pytest.mark.parametrize("url", ["localhost:8431", "ftp://x", "http://", "/v1", "http://x:99999", "http://[::1"])
def test_an_address_that_is_none_is_refused_with_an_example(url: str) -> None:
    with pytest.raises(wire.ApiError, match=r"write one such as http://127\.0\.0\.1:8431"):
        Client(url)


def test_the_environment_says_where_and_with_which_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([Reply(200, JOB)]) as (plain, script):
        monkeypatch.setenv("STILLHOUSE_URL", plain.url + "/")
        monkeypatch.setenv("STILLHOUSE_API_KEY", "secret-of-mine")
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # would swallow what is meant for this machine
        with Client() as client:
            client.jobs.get(ID)
        plain.jobs.get(ID)
    assert script.asked[0].headers["authorization"] == "Bearer secret-of-mine"
    assert "authorization" not in script.asked[1].headers
    assert "secret" not in script.asked[0].path


def test_pages_are_asked_for_when_they_are_needed() -> None:
    pages = [
        Reply(200, {"jobs": [JOB, JOB], "next_page_token": "t2"}),
        Reply(200, {"jobs": [JOB], "next_page_token": ""}),
    ]
    with serving(pages) as (client, script):
        found = client.jobs.list(state="SUCCEEDED", page_size=2)
        assert [next(found).id, next(found).id] == [ID, ID]
        assert len(script.asked) == 1
        assert len(list(found)) == 1
    assert "page_token=t2" in script.asked[1].path
    assert all("state=SUCCEEDED" in asked.path for asked in script.asked)


def test_what_is_drawn_of_a_job_comes_as_documents() -> None:
    trial, line = TRIAL["id"], {"lines": [LOG], "next_after": 41}
    answers = [TRIAL, CURVE, PARETO, SENSITIVITY, TIMELINE, line]
    with serving([Reply(200, answer) for answer in answers]) as (client, script):
        jobs = client.jobs
        assert jobs.trial(ID, trial).model_dump(mode="json") == TRIAL
        assert jobs.curve(ID, trial).model_dump(mode="json") == CURVE
        assert jobs.pareto(ID, "params", rung=0).model_dump(mode="json") == PARETO
        assert jobs.sensitivity(ID).model_dump(mode="json") == SENSITIVITY
        assert jobs.timeline(ID, after=3).model_dump(mode="json") == TIMELINE
        assert [found.model_dump(mode="json") for found in jobs.logs(ID, trial=trial, level="WARNING")] == [LOG]
    asked = [one.path.removeprefix(f"/v1/jobs/{ID}") for one in script.asked]
    assert asked == [
        f"/trials/{trial}",
        f"/trials/{trial}/curve",
        "/pareto?x=params&y=accuracy&rung=0",
        "/sensitivity?rung=0",
        "/timeline?after=3",
        f"/logs?after=0&level=WARNING&limit=500&trial={trial}",
    ]


def test_fields_of_a_newer_server_are_passed_over() -> None:
    newer = {**JOB, "mood": "good", "student": {**JOB["student"], "taste": 1}}
    with serving([Reply(200, newer)]) as (client, _):
        assert client.jobs.get(ID).student == client.jobs.get(ID).student


@pytest.mark.parametrize("body", [b"<html>", {"id": 7}])
def test_something_else_than_stillhouse_is_named_as_such(body: Any) -> None:
    with serving([Reply(200, body)]) as (client, _), pytest.raises(wire.ApiError):
        client.jobs.get(ID)


def test_waiting_ends_with_the_job_or_with_time() -> None:
    running = {**JOB, "state": "RUNNING", "student": None}
    with serving([Reply(200, running), Reply(200, JOB)]) as (client, script):
        assert client.jobs.wait(ID).state == "SUCCEEDED"
    assert "wait=" in script.asked[0].path
    with serving([Reply(200, running)]) as (client, _), pytest.raises(wire.TimedOut, match="still RUNNING"):
        client.jobs.wait(ID, timeout=0.05)
    failed = {**JOB, "state": "FAILED", "reason": "every trial failed", "student": None}
    with (
        serving([Reply(200, failed)]) as (client, _),
        pytest.raises(wire.JobFailed, match="every trial failed") as caught,
    ):
        client.jobs.wait(ID)
    assert caught.value.job.state == "FAILED"


# Streams


def told(*numbers: int, last: bool = False) -> bytes:
    events = []
    for number in numbers:
        kind = "JOB_SUCCEEDED" if last and number == numbers[-1] else "PROGRESS"
        data = json.dumps({"seq": number, "kind": kind, "at": "2026-11-21T08:00:02Z", "data": {}})
        events.append(f"id: {number}\nevent: {kind}\ndata: {data}\n\n")
    return ("retry: 2000\n\n: ping\n\n" + "".join(events)).encode()


def stream(data: bytes, cut: int | None = None) -> Reply:
    return Reply(200, data, {"Content-Type": "text/event-stream; charset=utf-8"}, cut)


def test_a_stream_is_taken_up_where_it_broke() -> None:
    whole = told(1, 2, 3)
    replies = [
        stream(whole, cut=whole.rindex(b"id: 3") + 30),  # in the middle of the third event
        problem(503),
        stream(told(2, 3, 4)),  # one that had been seen comes again, and the stream ends without a word
        stream(told(5, 6, last=True)),
    ]
    with serving(replies) as (client, script):
        assert [event.seq for event in client.jobs.stream(ID)] == [1, 2, 3, 4, 5, 6]
    assert [asked.headers["last-event-id"] for asked in script.asked] == ["0", "2", "2", "4"]


def test_a_stream_of_a_job_that_has_ended_and_was_seen_is_empty() -> None:
    with serving([Reply(204, b"")]) as (client, script):
        assert list(client.jobs.stream(ID, after=90)) == []
    assert len(script.asked) == 1


def test_a_server_that_stays_away_ends_the_stream_with_an_error() -> None:
    with serving([problem(503)]) as (client, script), pytest.raises(wire.ServerUnavailable):
        list(client.jobs.stream(ID, patience=0.1))
    assert len(script.asked) > 2


def test_a_stream_that_is_refused_is_not_tried_again() -> None:
    with serving([problem(404)]) as (client, script), pytest.raises(wire.NotFound):
        list(client.jobs.stream(ID))
    assert len(script.asked) == 1


# Pulling


def student(files: dict[str, bytes], **changes: Any) -> Callable[[Asked], Reply]:
    listed = [
        {
            "name": name if name.startswith("student-") else f"student/{name}",
            "media_type": "application/octet-stream",
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
            "href": "/elsewhere",
            **changes,
        }
        for name, data in files.items()
    ]

    def reply(asked: Asked) -> Reply:
        if asked.path.endswith("/content"):
            name = asked.path.split("/artifacts/")[1].removesuffix("/content")
            return Reply(200, files[name.removeprefix("student/")])
        return Reply(200, {"artifacts": listed} if asked.path.endswith("/artifacts") else JOB)

    return reply


BUNDLE = {"architecture.json": b"{}", "weights.safetensors": bytes(range(256)) * 999, "load.py": b"pass"}


def test_a_student_is_pulled_whole_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "student"
    seen: list[tuple[int, int]] = []
    with serving(student(BUNDLE)) as (client, _):
        for _ in range(2):
            files = client.jobs.pull(ID, out, on_bytes=lambda done, total: seen.append((done, total)))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == BUNDLE
    assert {path.name for path in files} == BUNDLE.keys()
    total = sum(map(len, BUNDLE.values()))
    assert seen[-1] == (total, total)
    assert [path.name for path in out.parent.iterdir()] == ["student"]


def test_every_student_of_a_ladder_gets_a_folder(tmp_path: Path) -> None:
    out, ladder = (
        tmp_path / "students",
        {f"student-{level}/{name}": data for level in (1, 2) for name, data in BUNDLE.items()},
    )
    with serving(student(ladder)) as (client, _):
        for _ in range(2):
            files = client.jobs.pull(ID, out)
    assert {path.relative_to(out).as_posix(): path.read_bytes() for path in files} == ladder
    assert {path.name for path in out.iterdir()} == {"student-1", "student-2"}
    with serving(student(BUNDLE)) as (client, _):
        client.jobs.pull(ID, out)
    assert {path.name for path in out.iterdir()} == BUNDLE.keys(), "a student replaces students"


@pytest.mark.parametrize("changes", [{"sha256": "0" * 64}, {"bytes": 1}, {"bytes": 10**9}])
def test_a_damaged_file_leaves_nothing_behind(tmp_path: Path, changes: dict[str, Any]) -> None:
    with serving(student({"load.py": b"pass"}, **changes)) as (client, _), pytest.raises(wire.Damaged):
        client.jobs.pull(ID, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_file_leaves_the_earlier_student_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "student"
    with serving(student(BUNDLE)) as (client, _):
        client.jobs.pull(ID, out)
    with serving(student(BUNDLE, sha256="0" * 64)) as (client, _), pytest.raises(wire.Damaged):
        client.jobs.pull(ID, out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == BUNDLE


def test_a_download_that_breaks_is_begun_again(tmp_path: Path) -> None:
    whole = student(BUNDLE)
    broken = []

    def reply(asked: Asked) -> Reply:
        answer = whole(asked)
        if asked.path.endswith("weights.safetensors/content") and not broken:
            broken.append(asked)
            answer.cut = 70_000
        return answer

    with serving(reply) as (client, _):
        client.jobs.pull(ID, tmp_path / "student")
    assert broken
    assert (tmp_path / "student" / "weights.safetensors").read_bytes() == BUNDLE["weights.safetensors"]


@pytest.mark.parametrize("name", ["../escape", "a/b", "/etc/x", "..", ".hidden", "a\\b", "C:x", "", "a\0b", "x" * 300])
@pytest.mark.parametrize("folder", ["", "student-1/"])
def test_a_name_that_leads_out_of_the_folder_is_not_written(tmp_path: Path, name: str, folder: str) -> None:
    assert not safe_name(name)
    with serving(student({folder + name: b"x"})) as (client, _), pytest.raises(wire.Damaged):
        client.jobs.pull(ID, tmp_path / "student")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "student"
    out.mkdir()
    (out / "thesis.tex").write_text("ten years")
    with serving(student(BUNDLE)) as (client, _), pytest.raises(UserError, match=r"thesis\.tex"):
        client.jobs.pull(ID, out)
    assert (out / "thesis.tex").read_text() == "ten years"


def test_nor_is_one_that_looks_like_a_level(tmp_path: Path) -> None:
    (tmp_path / "out" / "student-1").mkdir(parents=True)
    (tmp_path / "out" / "student-1" / "thesis.tex").write_text("ten years")
    with pytest.raises(UserError, match=r"student-1/thesis\.tex"):
        check_place(tmp_path / "out")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "student-1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="student-1"):
        check_place(tmp_path / "links")


def test_the_current_folder_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (".", tmp_path, "../" + tmp_path.name):
        with pytest.raises(UserError, match="current folder"):
            check_place(Path(place))


def test_a_job_without_a_student_says_so(tmp_path: Path) -> None:
    with serving(student({})) as (client, _), pytest.raises(wire.ApiError, match="has no student"):
        client.jobs.pull(ID, tmp_path / "student")


def test_what_fails_half_way_does_not_appear(tmp_path: Path) -> None:
    def fail() -> None:
        with placing(tmp_path / "out") as folder:
            (folder / "load.py").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert list(tmp_path.iterdir()) == []
