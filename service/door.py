"""
What every request passes first, whatever it asks for: an id, the check of its origin, protective headers, a
measurement, and the promise that every answer of 400 and above is a problem document.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import journal
from service.problems import KINDS, MEDIA_TYPE, PROTECTION, code_of, internal, problem, response
from workers.ids import new_id

logger = logging.getLogger("stillhouse.api")

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_PATH = 256
"""Characters of it in the log."""

Observe = Callable[[str, str, int, float], None]
"""Takes method, route, status and seconds."""


class Door:
    """
    The outermost layer. What a route leaves in `request.state.headers` goes on its answer, whatever that is.

    Gives the request its id (the client's own, if it sent a decent one) and puts it on the answer. Errors that other
    layers answer in words of their own are rewritten as problems, and what nobody caught becomes one without internals.
    """

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        answer = _Answer(scope, receive, send, _request_id(Headers(scope=scope)))
        journal.about(request_id=answer.request_id)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            logger.exception("%s: %s %r failed", answer.request_id, scope["method"], scope["path"][:_LONGEST_PATH])
            if answer.started:
                raise  # half an answer is out; closing the connection is the only honest end
            await answer.send_problem(500)
        finally:
            # Only routes that exist become labels: addresses are the caller's choice, and without end.
            route = getattr(scope.get("route"), "path", "none")
            seconds, path = time.monotonic() - began, scope["path"][:_LONGEST_PATH]
            self._observe(scope["method"], route, answer.status, seconds)
            logger.info(
                "%s %s %r %d %.1f ms",
                answer.request_id,
                scope["method"],
                path,
                answer.status,
                1000 * seconds,
                extra={"method": scope["method"], "path": path, "status": answer.status, "seconds": seconds},
            )


class _Answer:
    """The way back of one request."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self.request_id, self.status, self.started = request_id, 500, False
        self._foreign: Message | None = None
        scope.setdefault("state", {})["request_id"] = request_id

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if message["status"] >= 400 and Headers(raw=message["headers"]).get("content-type") != MEDIA_TYPE:
                self._foreign = message
                return
            self.started, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self.request_id
            for name, value in {**PROTECTION, **self._scope["state"].get("headers", {})}.items():
                headers.setdefault(name, value)
        elif self._foreign is not None:
            if not message.get("more_body", False):
                await self._rewrite(self._foreign)
            return
        await self._send(message)

    async def send_problem(self, status: int) -> None:
        self._foreign = None
        await response(internal(self.request_id))(self._scope, self._receive, self.send)

    async def _rewrite(self, start: Message) -> None:
        self._foreign = None
        status = start["status"]
        if status >= 500:
            await self.send_problem(status)
            return
        # Of the layers between here and the routes only the check of the host answers 400 in words of its own.
        code = "UNKNOWN_HOST" if status == 400 else code_of(status)
        found = problem(code, f"{KINDS[code].title}. {KINDS[code].remedy}", self.request_id)
        allow = Headers(raw=start["headers"]).get("allow")
        await response(found, {"Allow": allow} if allow else None)(self._scope, self._receive, self.send)


class SameOrigin:
    """
    Refuses requests that a browser sends for the page of another site.

    A browser names the page's site in `Origin`; programs send none and pass. The host was checked before.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _foreign(Headers(scope=scope)):
            refused = problem("FOREIGN_ORIGIN", KINDS["FOREIGN_ORIGIN"].remedy, scope["state"]["request_id"])
            await response(refused)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _foreign(headers: Headers) -> bool:
    here = {f"{scheme}://{headers.get('host', '').lower()}" for scheme in ("http", "https")}
    return (
        any(origin.lower() not in here for origin in headers.getlist("origin"))
        or headers.get("sec-fetch-site") == "cross-site"
    )


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else new_id("req")
