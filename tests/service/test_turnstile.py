"""Bytes on a socket that no decent client sends: answered in words or cut off, while others are served."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
from starlette.testclient import TestClient

from service.door import Door
from service.turnstile import Turnstile
from tests.service.served import HERE, SPEC, listening, make_app

pytestmark = pytest.mark.timeout(30)

PATIENCE = 0.8
"""Seconds that this server waits for a request."""
BODY = json.dumps(SPEC).encode()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with listening(make_app(tmp_path_factory.mktemp("home"), request_seconds=PATIENCE)) as url:
        yield url


def connected(url: str) -> socket.socket:
    address = urlsplit(url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def answers(url: str, *parts: bytes, pause: float = 0.0) -> list[bytes]:
    """What comes back until the server closes the connection, cut where answers begin."""
    with connected(url) as line:
        try:
            for part in parts:
                line.sendall(part)
                time.sleep(pause)
        except OSError:
            pass  # it has closed already
        received = b""
        try:
            while data := line.recv(65536):
                received += data
        except ConnectionResetError:
            pass
    return re.split(rb"(?=HTTP/1\.1 \d\d\d )", received)[1:]


def request(*headers: str, line: str = "GET /v1/jobs HTTP/1.1", host: str = "localhost") -> bytes:
    return "\r\n".join([line, f"Host: {host}", *headers, "Connection: close", "", ""]).encode()


def status(answer: bytes) -> int:
    return int(answer.split()[1])


def code(answer: bytes) -> str:
    """Of a problem; every answer of 400 and above is one."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head, answer
    assert b"x-request-id: " in head.lower()
    return str(json.loads(body)["code"])


POST = "POST /v1/jobs HTTP/1.1"
JSON = "Content-Type: application/json"
LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)


@pytest.mark.parametrize(
    "sent",
    [
        request(JSON, LENGTH, "Content-Length: 3", line=POST) + BODY,
        request(JSON, LENGTH, f"Content-Length: {len(BODY)}0", line=POST) + BODY,
        request(JSON, "Content-Length: 3, 4", line=POST) + BODY,
        request(JSON, "Content-Length: +3", line=POST) + BODY,
        request(JSON, "Content-Length: -1", line=POST) + BODY,
        request(JSON, LENGTH, "Transfer-Encoding: chunked", line=POST) + CHUNKED,
        request(JSON, "Transfer-Encoding: chunked", "Transfer-Encoding: identity", line=POST) + CHUNKED,
        request(JSON, "Transfer-Encoding: gzip, chunked", line=POST) + CHUNKED,
        request(JSON, "Transfer-Encoding : chunked", line=POST) + CHUNKED,
        request(JSON, LENGTH, "Idempotency-Key: one", "Idempotency-Key: two", line=POST) + BODY,
        request(JSON, LENGTH, JSON, line=POST) + BODY,
        request("Authorization: Bearer one", "Authorization: Bearer two"),
        request("Host: example.org"),
        b"GET /v1/jobs HTTP/1.1\r\nConnection: close\r\n\r\n",
        request("X-Big: " + "x" * 1_000_000),
        request(*(f"X-{number}: y" for number in range(20_000))),
        b"GET /v1/jobs HTTP/1.1\nHost: localhost\nX: \x00\n\n",
        request(line=f"GET /{'a' * 100_000} HTTP/1.1"),
        request(line=f"GET /v1/jobs?page_token={'a' * 100_000} HTTP/1.1"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS hello",
    ],
)
def test_what_can_be_read_in_two_ways_or_not_at_all_is_refused_once(url: str, sent: bytes) -> None:
    got = answers(url, sent)
    assert [(status(answer), code(answer)) for answer in got] == [(400, "MALFORMED_REQUEST")]
    assert b"connection: close" in got[0].lower()


def test_an_equal_length_said_twice_is_one_length(url: str) -> None:
    """RFC 9110, 8.6: the parser makes one of them, so nobody behind it can read another."""
    (answer,) = answers(url, request(JSON, LENGTH, LENGTH, line=POST) + BODY)
    assert status(answer) == 201


def test_what_follows_a_refused_request_is_not_read_as_one(url: str) -> None:
    smuggled = request(line="DELETE /v1/jobs/job_x HTTP/1.1")
    head = f"{POST}\r\nHost: localhost\r\n{JSON}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    assert len(answers(url, head + b"0\r\n\r\n" + smuggled)) == 1


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (request(line="HEAD /v1/jobs HTTP/1.1"), {405}),
        (request(line="OPTIONS /v1/jobs HTTP/1.1"), {405}),
        (request(line="OPTIONS * HTTP/1.1"), {404}),
        (request(line="TRACE /v1/jobs HTTP/1.1"), {405}),
        (request(line="CONNECT localhost:80 HTTP/1.1"), {404, 405}),
        (request(line="GET /%2e%2e/%2e%2e/etc/passwd HTTP/1.1"), {404}),
        (request(line="GET /v1/jobs/%2e%2e/server HTTP/1.1"), {404}),
        (request(line="GET /v1/jobs/..%2fserver HTTP/1.1"), {404}),
        (request(line="GET /v1/jobs/%00 HTTP/1.1"), {404}),
        (request(line="GET /v1/jobs%00/x HTTP/1.1"), {404}),
        (request(line="GET /problems/%ff%fe HTTP/1.1"), {404}),
        (request(line="GET //v1/jobs HTTP/1.1"), {404}),
        (request(line="GET http://example.org/v1/jobs HTTP/1.1"), {404}),
        (request(line="GET /v1/jobs?page_size=%00 HTTP/1.1"), {422}),
        (request(line="GET /v1/jobs?page_token=%ff%00' HTTP/1.1"), {400, 422}),
    ],
)
def test_odd_methods_and_addresses_are_answered_as_what_is_not_there(url: str, sent: bytes, expected: set[int]) -> None:
    (answer,) = answers(url, sent)
    assert status(answer) in expected, answer
    if not sent.startswith(b"HEAD"):
        assert code(answer)
    assert b"root:" not in answer


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "ODD")


@pytest.mark.parametrize("method", METHODS)
def test_host_and_origin_are_looked_at_whatever_the_method(url: str, method: str) -> None:
    line = f"{method} /v1/jobs HTTP/1.1"
    (elsewhere,) = answers(url, request(line=line, host="evil.example"))
    (rebound,) = answers(
        url, request("X-Forwarded-Host: localhost", "Forwarded: host=localhost", line=line, host="evil")
    )
    (foreign,) = answers(url, request("Origin: https://evil.example", line=line))
    (nowhere,) = answers(url, request("Origin: null", line=line))
    assert [status(answer) for answer in (elsewhere, rebound, foreign, nowhere)] == [400, 400, 403, 403]


def test_who_a_proxy_claims_to_speak_for_changes_nothing(url: str) -> None:
    claims = ("X-Forwarded-For: 8.8.8.8", "X-Forwarded-Proto: https", "X-Forwarded-Host: evil", "X-Real-IP: 8.8.8.8")
    (plain,) = answers(url, request("X-Request-Id: same"))
    (claimed,) = answers(url, request(*claims, "X-Request-Id: same"))

    def without_date(answer: bytes) -> list[bytes]:
        return [line for line in answer.split(b"\r\n") if not line.startswith((b"date:", b"ratelimit"))]

    assert without_date(plain) == without_date(claimed)


def test_a_head_that_dribbles_is_cut_off(url: str) -> None:
    began = time.monotonic()
    assert answers(url, *[b"GET /v1/jobs HTTP/1.1\r\n", *[b"X: y\r\n"] * 30], pause=0.1) == []
    assert PATIENCE - 0.1 < time.monotonic() - began < PATIENCE + 4


def test_a_second_head_that_dribbles_is_cut_off_too(url: str) -> None:
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    began = time.monotonic()
    assert len(answers(url, whole, b"GET /healthz HT", pause=0.2)) == 1
    assert PATIENCE - 0.1 < time.monotonic() - began < PATIENCE + 3


def test_a_body_that_dribbles_is_told_so_and_cut_off(url: str) -> None:
    head = request(JSON, LENGTH, line=POST)
    began = time.monotonic()
    (answer,) = answers(url, head, *[bytes([byte]) for byte in BODY[:40]], pause=0.1)
    assert (status(answer), code(answer)) == (408, "TOO_SLOW")
    assert b"retry-after: " in answer
    assert time.monotonic() - began < 6


def test_a_body_that_never_comes_is_told_so(url: str) -> None:
    (answer,) = answers(url, request(JSON, "Transfer-Encoding: chunked", "Expect: 100-continue", line=POST))[-1:]
    assert (status(answer), code(answer)) == (408, "TOO_SLOW")


def test_a_slow_answer_is_nobodys_fault(url: str) -> None:
    """Patience is for what comes in: a request that waits for a job outlives it."""
    with httpx2.Client(base_url=url) as http:
        job = http.post("/v1/jobs", json=SPEC).json()["id"]
        began = time.monotonic()
        assert http.get(f"/v1/jobs/{job}", params={"wait": 2}).json()["state"] == "QUEUED"
        assert time.monotonic() - began > 2 * PATIENCE


def test_a_body_in_crumbs_is_cut_off_soon(url: str) -> None:
    head = request(JSON, "Transfer-Encoding: chunked", line=POST)
    crumbs = b"1\r\n \r\n" * 200_000
    began = time.monotonic()
    got = answers(url, head, crumbs)
    assert time.monotonic() - began < 3
    assert got == []


def test_a_body_in_decent_chunks_is_taken(url: str) -> None:
    spaced = BODY + b" " * 50_000
    pieces = [spaced[start : start + 40] for start in range(0, len(spaced), 40)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    (answer,) = answers(url, request(JSON, "Transfer-Encoding: chunked", line=POST), chunks, b"0\r\n\r\n")
    assert status(answer) == 201


def test_a_body_without_end_is_not_read_to_its_end(url: str) -> None:
    head = request(JSON, "Transfer-Encoding: chunked", line=POST)
    flood = (b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n") * 20
    got = answers(url, head, flood)
    assert [status(answer) for answer in got] in ([413], [])  # the answer may be lost when we go on sending


def test_ranges_without_number_cost_nothing(url: str) -> None:
    ranges = "Range: bytes=" + ",".join(f"{start}-{start}" for start in range(2500))
    began = time.monotonic()
    (answer,) = answers(url, request(ranges, line="GET /v1/server HTTP/1.1"))
    assert (status(answer), time.monotonic() - began < 1.0) == (200, True)


def test_two_hundred_idle_sockets_keep_nobody_waiting(url: str) -> None:
    with ExitStack() as held, httpx2.Client(base_url=url) as http:
        http.get("/v1/server")
        for number in range(200):
            line = held.enter_context(connected(url))
            if number % 2:
                line.sendall(b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n")
        seconds = []
        for _ in range(50):
            began = time.monotonic()
            assert http.get("/v1/server").status_code == 200
            seconds.append(time.monotonic() - began)
        assert sorted(seconds)[48] < 0.5
        deadline = time.monotonic() + 5
        line.settimeout(5)
        assert line.recv(1) == b"", "and in time they are dropped"
        assert time.monotonic() < deadline


def test_silence_keeps_nobody_out(tmp_path: Path) -> None:
    app = make_app(tmp_path)
    with listening(app, connections=12) as url, ExitStack() as held:
        job = httpx2.post(f"{url}/v1/jobs", json=SPEC).json()["id"]
        waiting = held.enter_context(connected(url))
        waiting.sendall(request(line=f"GET /v1/jobs/{job}?wait=1 HTTP/1.1"))
        time.sleep(0.2)
        silent = [held.enter_context(connected(url)) for _ in range(60)]
        assert httpx2.get(f"{url}/v1/server").status_code == 200
        assert silent[0].recv(1) == b"", "the oldest had to go"
        assert waiting.recv(12) == b"HTTP/1.1 200", "the one that waits for its answer did not"


def test_more_requests_than_can_be_answered_are_told_to_come_back(tmp_path: Path) -> None:
    app = Turnstile(make_app(tmp_path), seconds=1, most=0)
    door = TestClient(Door(app, observe=lambda *_: None), base_url=HERE)
    answer = door.get("/v1/jobs")
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "BUSY", "2")
    assert door.get("/healthz").status_code == 200


def test_a_home_is_not_left_in_the_answers(url: str, tmp_path: Path) -> None:
    (answer,) = answers(url, request(line="GET /v1/nothing%2f..%2f HTTP/1.1"))
    assert str(tmp_path.parent).encode() not in answer
