"""
What a connection may cost: clients that dribble, flood or speak in two tongues are told so or cut off.

Behind a proxy much of this is done twice. A server that a colleague starts on a shared machine has no proxy.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.problems import MEDIA_TYPE, PROTECTION, Refusal, problem, response
from workers.ids import new_id

HEAD_BYTES = 32 * 1024
CONNECTIONS, REQUESTS = 512, 480
"""Of one process at a time. Fewer are answered than kept, so that who is one too many can be told so."""
_ONCE = ("authorization", "content-length", "content-type", "host", "idempotency-key", "transfer-encoding")
"""Headers of which a second one could be read by somebody else on the way as the one that counts."""
_BYTES_A_SECOND = 16 * 1024
"""A body that comes at least that fast may take as long as it takes."""
_LINES, _BYTES_A_LINE = 2000, 8
"""Ends of lines in a body sent in chunks: so many, and one more for so many bytes. A chunk of a byte has two in six."""


class Turnstile:
    """
    Refuses heads that can be read in two ways or are too large, bodies that do not come within `seconds`, and more than
    `most` requests at a time; whether the process lives may be asked nevertheless.
    """

    def __init__(self, app: ASGIApp, seconds: float, most: int = REQUESTS) -> None:
        self._app, self._seconds, self._most = app, seconds, most
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if fault := _fault(scope):
            refused = problem("MALFORMED_REQUEST", fault, scope["state"]["request_id"])
            await response(refused, {"Connection": "close"})(scope, receive, send)
            return
        if self._under_way >= self._most and scope["path"] != "/healthz":
            detail = "As many requests are under way as this server takes at a time; try again a little later."
            await response(problem("BUSY", detail, scope["state"]["request_id"]))(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._app(scope, _Patience(receive, self._seconds), send)
        finally:
            self._under_way -= 1


def _fault(scope: Scope) -> str:
    headers = Headers(scope=scope)
    for name in _ONCE:
        if len(headers.getlist(name)) > 1:
            return f"Send one {name.title()} header, not several."
    if "transfer-encoding" in headers and "content-length" in headers:
        return "Send Content-Length or Transfer-Encoding, not both: they could be read as two different requests."
    spoken = (
        scope.get("raw_path", b""),
        scope["query_string"],
        *(part for header in scope["headers"] for part in header),
    )
    if sum(map(len, spoken)) > HEAD_BYTES:
        return f"The address and the headers together may have {HEAD_BYTES // 1024} KiB; shorten them."
    return ""


class _Patience:
    """The way in of one request, which ends when its body has taken too long."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive, self._seconds = receive, seconds
        self._until: float | None = None
        self._whole = False

    async def __call__(self) -> Message:
        """Raises `Refusal` (408)."""
        if self._whole:
            return await self._receive()  # of its end, whenever that may be
        self._until = self._until or time.monotonic() + self._seconds
        try:
            async with asyncio.timeout(max(self._until - time.monotonic(), 0.0)):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(
                "TOO_SLOW",
                f"The body did not come within {self._seconds:g} s, nor at {_BYTES_A_SECOND // 1024} KiB a second; "
                "send it faster.",
                headers={"Connection": "close"},
            ) from None
        self._until += len(message.get("body", b"")) / _BYTES_A_SECOND
        self._whole = not message.get("more_body", False)
        return message


class Connection(H11Protocol):
    """
    A connection that is closed when the head of a request has not come whole within `head_seconds`, or when a body
    comes in crumbs. When there are more than `most`, the oldest of those goes on which nothing is being answered, so
    nobody is kept out by others' silence. What is no HTTP is answered with a problem document too.
    """

    def __init__(self, *args: Any, head_seconds: float, most: int = CONNECTIONS, **named: Any) -> None:
        super().__init__(*args, **named)
        self._head_seconds, self._most = head_seconds, most
        self._since = self.loop.time()
        self._waiting: asyncio.TimerHandle | None = None
        self._bytes = self._lines = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > self._most:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.conn.their_state is h11.SEND_BODY and self._crumbles(data):
            self.transport.abort()
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._go_on()

    def send_400_response(self, msg: str) -> None:
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()  # half an answer is out
            return
        instance = new_id("req")
        told = problem("MALFORMED_REQUEST", "This is not HTTP, or its head is too large.", instance)
        body = told.model_dump_json().encode()
        headers = {"Content-Type": MEDIA_TYPE, "X-Request-Id": instance, "Content-Length": str(len(body))}
        lines = [*{**PROTECTION, **headers, "Connection": "close"}.items()]
        for event in (
            h11.Response(status_code=400, headers=lines, reason=b"Bad Request"),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _crumbles(self, data: bytes) -> bool:
        if not any(name == b"transfer-encoding" for name, _ in self.headers):
            return False
        self._bytes, self._lines = self._bytes + len(data), self._lines + data.count(b"\r\n")
        return self._lines > _LINES + self._bytes // _BYTES_A_LINE

    @property
    def _silent(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self) -> None:
        silent = [other for other in self.connections if isinstance(other, Connection) and other._silent]
        oldest = min(silent, key=lambda other: other._since)  # this one is among them
        self.connections.discard(oldest)
        oldest.transport.abort()

    def _wait(self) -> None:
        self._bytes = self._lines = 0
        if self._waiting is None:
            self._waiting = self.loop.call_later(self._head_seconds, self._too_slow)

    def _go_on(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _too_slow(self) -> None:
        self._waiting = None
        if not self.transport.is_closing():
            self.transport.close()
