"""
Requests to a Stillhouse server: sent again where that is safe, and what is raised when no good answer comes, drawn:

    ApiError
    ├── Unreachable               no answer: wrong address, no server, or the connection broke
    ├── TimedOut                  the answer, or the end of a job, did not come in time
    ├── JobFailed                 `wait` saw the job end as FAILED or CANCELLED; `job` is its document
    ├── Damaged                   a pulled file is not what the server recorded, or has a name that is not safe
    └── StatusError               the server said no; `status`, `code`, `errors` and `request_id` tell the rest
        ├── BadRequest            400
        ├── Unauthenticated       401
        ├── PermissionDenied      403
        ├── NotFound              404
        ├── Conflict              409
        ├── KeyReused             409 or 422: the Idempotency-Key came before with another body
        ├── Invalid               422: `errors` has a pointer and a remedy for each mistake
        ├── RateLimited           429
        └── ServerError           5xx
            └── ServerUnavailable 502, 503, 504: later it may work
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar

import httpx2
from pydantic import BaseModel

from search.errors import FieldError, StillhouseError
from service import latchkey
from service.documents import JobDocument

DEFAULT_URL = "http://127.0.0.1:8431"
LONGEST_PAUSE = 120.0
"""Seconds; a server that asks for more in `Retry-After` is not waited for."""
D = TypeVar("D", bound=BaseModel)
_AGAIN = frozenset({408, 429, 502, 503, 504})


class ApiError(StillhouseError):
    code = "API_ERROR"


class Unreachable(ApiError):
    code = "UNREACHABLE"


class TimedOut(ApiError):
    code = "TIMED_OUT"


class Damaged(ApiError):
    code = "DAMAGED"


class JobFailed(ApiError):
    code = "JOB_FAILED"

    def __init__(self, message: str, job: JobDocument) -> None:
        super().__init__(message)
        self.job = job


class StatusError(ApiError):
    """`status` is the HTTP status; `retryable` whether the same request may succeed later."""

    def __init__(self, status: int, problem: Mapping[str, Any], request_id: str = "") -> None:
        super().__init__(str(problem.get("detail") or problem.get("title") or f"the server answered {status}"))
        self.status = status
        self.code = str(problem.get("code") or f"HTTP_{status}")
        self.request_id = request_id
        self.retryable = bool(problem.get("retryable", status in _AGAIN))
        self.errors: tuple[FieldError, ...] = tuple(_field_error(found) for found in problem.get("errors") or ())

    @staticmethod
    def of(status: int, problem: Mapping[str, Any], request_id: str = "") -> StatusError:
        kind = KeyReused if problem.get("code") == "IDEMPOTENCY_KEY_REUSED" else _KINDS.get(status)
        if kind is None:
            kind = ServerError if status >= 500 else StatusError
        return kind(status, problem, request_id)


class BadRequest(StatusError): ...


class Unauthenticated(StatusError): ...


class PermissionDenied(StatusError): ...


class NotFound(StatusError): ...


class Conflict(StatusError): ...


class KeyReused(StatusError): ...


class Invalid(StatusError): ...


class RateLimited(StatusError): ...


class ServerError(StatusError): ...


class ServerUnavailable(ServerError): ...


_KINDS: Mapping[int, type[StatusError]] = {
    400: BadRequest,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    422: Invalid,
    429: RateLimited,
    502: ServerUnavailable,
    503: ServerUnavailable,
    504: ServerUnavailable,
}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts, in seconds: `first`, doubled each time up to `longest`, each shortened by up to half."""

    retries: int = 2
    first: float = 0.5
    longest: float = 8.0

    def pause(self, attempt: int) -> float:
        """Before the attempt after `attempt` (0 is the first)."""
        return min(self.longest, self.first * 2.0 ** min(attempt, 32)) * random.uniform(0.5, 1)


class Wire:
    """
    One server. `url` and `api_key` default to STILLHOUSE_URL and STILLHOUSE_API_KEY or the content of
    STILLHOUSE_API_KEY_FILE; on the server's own machine, to the key that it keeps in its home (`service.latchkey`),
    which goes to no other. The key is never put in a URL.

    Only requests that may be sent twice belong here: reads, plans, cancellations, and whatever carries an
    Idempotency-Key. So every one of them is sent again after a broken connection or a passing refusal.

    Raises:
        ApiError: `url` is not an http or https address.
    """

    def __init__(
        self, url: str | None, api_key: str | None, *, timeout: float = 30.0, backoff: Backoff | None = None
    ) -> None:
        self.url = (url or os.environ.get("STILLHOUSE_URL") or DEFAULT_URL).rstrip("/")
        host = _host(self.url)
        key = api_key or os.environ.get("STILLHOUSE_API_KEY", "").strip()
        if not key and (file := os.environ.get("STILLHOUSE_API_KEY_FILE")):
            key = latchkey.read(Path(file))
        if not key and _on_this_machine(host):
            key = latchkey.of_this_machine()
        self.backoff = backoff or Backoff()
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=timeout,
            # A proxy meant for the world outside cannot reach a server on this machine.
            trust_env=not _on_this_machine(host),
        )

    def close(self) -> None:
        self._http.close()

    def alive(self, path: str) -> bool:
        """Whether a probe answers well; asks once and soon gives up."""
        try:
            return self._http.get(path, timeout=2.0).is_success
        except httpx2.TransportError:
            return False

    def get(self, path: str, *, params: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """The decoded JSON answer."""
        return self.send("GET", path, params=params, timeout=timeout)

    def post(
        self,
        path: str,
        body: object = None,
        *,
        params: Mapping[str, Any] | None = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The decoded JSON answer; `key` is the Idempotency-Key."""
        headers = {"Idempotency-Key": key} if key else {}
        return self.send("POST", path, params=params, body=body, headers=headers, timeout=timeout)

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], Iterator[bytes]] | None = None,
        timeout: float | None = None,
    ) -> Any:
        """The decoded JSON answer. The body is `body` as JSON, or what `content` gives, anew for each attempt."""
        for attempt in range(self.backoff.retries + 1):
            last = attempt == self.backoff.retries
            try:
                response = self._http.request(
                    method,
                    path,
                    params=params,
                    headers=headers,
                    json=body,
                    content=None if content is None else content(),
                    timeout=httpx2.USE_CLIENT_DEFAULT if timeout is None else timeout,
                )
            except httpx2.TransportError as error:
                if last:
                    raise self.broken(error) from error
                time.sleep(self.backoff.pause(attempt))
                continue
            if response.is_success:
                return _decoded(response)
            pause = self._pause(response, attempt)
            if last or pause is None:
                raise refusal(response)
            time.sleep(pause)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def paged(self, path: str, items: str, params: Mapping[str, Any]) -> Iterator[Any]:
        """All items of a list; the next page is asked for when it is needed."""
        token = ""
        while True:
            page = self.get(path, params={**params, "page_token": token} if token else params)
            yield from page[items]
            token = page["next_page_token"]
            if not token:
                return

    @contextmanager
    def download(self, path: str) -> Iterator[Iterator[bytes]]:
        """The body in pieces, as it arrives. Not sent again: the caller knows what it has kept of it."""
        try:
            with self._http.stream("GET", path) as response:
                if not response.is_success:
                    response.read()
                    raise refusal(response)
                yield response.iter_bytes()
        except httpx2.TransportError as error:
            raise self.broken(error) from error

    @contextmanager
    def events(self, path: str, *, after: int, silence: float) -> Iterator[Iterator[httpx2.ServerSentEvent] | None]:
        """
        Server-sent events after number `after`, or None when there will be no more; a connection silent for `silence`
        seconds counts as broken.
        """
        patience = httpx2.Timeout(10.0, read=silence)
        try:
            with self._http.sse(path, headers={"Last-Event-ID": str(after)}, timeout=patience) as source:
                if not source.response.is_success:
                    source.response.read()
                    raise refusal(source.response)
                yield None if source.response.status_code == httpx2.codes.NO_CONTENT else iter(source)
        except httpx2.TransportError as error:
            raise self.broken(error) from error

    def broken(self, error: httpx2.TransportError) -> ApiError:
        if isinstance(error, httpx2.TimeoutException) and not isinstance(error, httpx2.ConnectTimeout):
            return TimedOut(f"{self.url} did not answer in time")
        return Unreachable(f"no Stillhouse server answers at {self.url} ({_first_line(error)})")

    def _pause(self, response: httpx2.Response, attempt: int) -> float | None:
        """Seconds until the next attempt; None when there should be none."""
        said = response.headers.get("X-Should-Retry", "").lower()
        if said == "false" or (response.status_code not in _AGAIN and said != "true"):
            return None
        asked = seconds_asked(response.headers.get("Retry-After", ""))
        if asked is None:
            return self.backoff.pause(attempt)
        return asked if asked <= LONGEST_PAUSE else None


def refusal(response: httpx2.Response) -> StatusError:
    """The error that a response other than 2xx stands for; its body has been read."""
    try:
        problem = response.json()
    except ValueError:
        problem = {}
    if not isinstance(problem, dict):
        problem = {}
    request_id = response.headers.get("X-Request-Id", "") or str(problem.get("instance", ""))
    return StatusError.of(response.status_code, problem, request_id)


def _decoded(response: httpx2.Response) -> Any:
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError:
        raise ApiError(f"{response.url} answered something other than JSON; is it a Stillhouse server?") from None


def _field_error(found: Mapping[str, Any]) -> FieldError:
    return FieldError(
        pointer=str(found.get("pointer", "")),
        code=str(found.get("code", "")),
        message=str(found.get("message", "")),
        allowed=tuple(map(str, found.get("allowed") or ())),
    )


def seconds_asked(value: str) -> float | None:
    """Seconds, from a number or an HTTP date; None when the header is missing or neither."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _host(url: str) -> str:
    try:
        found = httpx2.URL(url)
    except httpx2.InvalidURL:
        found = httpx2.URL()
    if found.scheme not in ("http", "https") or not found.host or (found.port or 1) > 65535:
        raise ApiError(f"`{url}` is not an address of a server; write one such as {DEFAULT_URL}")
    return found.host


def _on_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0] or type(error).__name__


def document(kind: type[D], data: object) -> D:
    """A document from a server that may be newer than this client."""
    try:
        return kind.model_validate(data, extra="ignore")
    except ValueError as error:
        raise ApiError(f"the server's answer is not what this client understands: {error}") from None


def parsed(data: str) -> Any:
    """The JSON of one event."""
    try:
        return json.loads(data)
    except ValueError:
        raise ApiError("the server sent an event that is not JSON") from None
