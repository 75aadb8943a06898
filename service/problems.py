"""
Errors as answers: RFC 9457 problem documents, whatever went wrong and wherever.

The table of kinds is the page at `/problems/<name>` too. What an answer of 500 or above says never comes from the
exception: that goes to the log, under the request id which the answer bears as `instance`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from search.errors import (
    FieldError,
    LedgerError,
    Outdated,
    StillhouseError,
    StorageFull,
    StoreUnavailable,
    UserError,
    did_you_mean,
)
from service.checker import CheckerBusy
from service.store.values import QuotaSpent

logger = logging.getLogger("stillhouse.api")

MEDIA_TYPE = "application/problem+json"
PROTECTION: Mapping[str, str] = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "Cache-Control": "no-store",
}
"""Headers of every answer, whatever it is and whichever layer gives it."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem. `remedy` is what whoever reads the page can do about it."""

    status: int
    title: str
    remedy: str
    retryable: bool = False

    @property
    def retry_after(self) -> int | None:
        """Seconds after which a repeat is sensible."""
        return 2 if self.retryable else None


KINDS: Mapping[str, Kind] = {
    "MALFORMED_JSON": Kind(400, "The body is not JSON", "Send one JSON object, encoded as UTF-8."),
    "MALFORMED_REQUEST": Kind(400, "The request is malformed", "Correct what `detail` names."),
    "UNKNOWN_HOST": Kind(
        400,
        "This server does not go by that name",
        "Address it by a name in STILLHOUSE_ALLOWED_HOSTS, or have its operator add the name there.",
    ),
    "UNAUTHENTICATED": Kind(401, "A valid API key is needed", "Send `Authorization: Bearer <key>`."),
    "FOREIGN_ORIGIN": Kind(
        403, "Another site's page may not call this server", "Call it from its own pages, or from a program."
    ),
    "FORBIDDEN": Kind(
        403, "The key is not good for that", "Use a key of a wider scope; `stillhouse keys create` makes one."
    ),
    "WEBHOOKS_OFF": Kind(
        403,
        "This server sends nothing to webhooks",
        "Have its operator name the hosts of receivers in STILLHOUSE_WEBHOOK_HOSTS.",
    ),
    "NOT_FOUND": Kind(404, "There is no such thing", "Check the address and the id."),
    "METHOD_NOT_ALLOWED": Kind(405, "That method is not offered here", "Use one of those in the Allow header."),
    "TOO_SLOW": Kind(408, "The request did not come in time", "Send it again, faster.", retryable=True),
    "CONFLICT": Kind(409, "Its state does not allow that", "Read it again, then decide."),
    "STALE_CLAIM": Kind(409, "Another driver owns the job", "Nothing: the other driver goes on."),
    "ILLEGAL_TRANSITION": Kind(409, "A job at its end stays as it is", "Submit a new job."),
    "LENGTH_REQUIRED": Kind(411, "The length of the body is not said", "Send a Content-Length."),
    "OUTDATED": Kind(
        412, "Somebody has changed it since you looked", "Read it again, decide anew, and send its new ETag."
    ),
    "BODY_TOO_LARGE": Kind(413, "The body is too large", "A job spec is small; put data and weights into files."),
    "UNSUPPORTED_MEDIA_TYPE": Kind(
        415, "The body is of a kind that is not understood here", "Send the Content-Type that `detail` names."
    ),
    "INVALID": Kind(422, "What was asked cannot be done", "Correct the fields in `errors`."),
    "INVALID_SPEC": Kind(422, "The job spec has mistakes", "Correct the fields in `errors`; each says how."),
    "INVALID_PARAMETER": Kind(422, "A parameter has a value that cannot be used", "Correct those in `errors`."),
    "UNKNOWN_NAME": Kind(422, "No plugin has that name", "Choose one of `allowed`; /v1/catalog describes them."),
    "BUDGET_IMPOSSIBLE": Kind(
        422,
        "No student of this teacher fits the budget",
        "Raise the limit to at least the smallest reachable value, or widen the space.",
    ),
    "DATASET_UNUSABLE": Kind(422, "The dataset cannot be used", "Repair or replace the file that `detail` names."),
    "DATASET_CORRUPT": Kind(
        422,
        "Too many images of the dataset cannot be used",
        "Replace or remove the files that `detail` names, or allow a larger `max_bad_fraction`.",
    ),
    "UPLOAD_DIFFERS": Kind(
        422, "What came is not what was declared", "Send the file that was declared, or declare the one you have."
    ),
    "WEIGHTS_UNUSABLE": Kind(
        422, "The weights cannot be used", "Give a safetensors file with the architecture's own state dict."
    ),
    "UNSUPPORTED_NETWORK": Kind(422, "This network cannot be compressed", "Choose another teacher from /v1/catalog."),
    "IDEMPOTENCY_KEY_REUSED": Kind(
        422, "The Idempotency-Key came before with another body", "Send the same body again, or a new key."
    ),
    "BEYOND_QUOTA": Kind(
        422,
        "That is more than the tenant may ever have",
        "Ask for less at `errors`, or have the limit raised.",
    ),
    "TOO_MANY_WEBHOOKS": Kind(
        422, "The tenant has as many webhooks as it may", "Delete one that is not needed any more."
    ),
    "TOO_MANY_STREAMS": Kind(
        429, "The key has as many event streams open as it may", "Close one, or read pages.", retryable=True
    ),
    "RATE_LIMITED": Kind(429, "Too many requests", "Wait for as long as Retry-After says.", retryable=True),
    "QUOTA_QUEUED_JOBS": Kind(
        429,
        "The tenant has as many jobs in the queue as it may",
        "Submit again when some have started.",
        retryable=True,
    ),
    "QUOTA_STORED_BYTES": Kind(
        429,
        "The tenant's artifacts and uploads take up all their room",
        "Delete uploads that no job needs, or have the operator raise the limit.",
        retryable=True,
    ),
    "QUOTA_CPU_SECONDS_PER_DAY": Kind(
        429, "The tenant's CPU-seconds of the day are used up", "Submit again tomorrow (UTC).", retryable=True
    ),
    "QUOTA_GPU_SECONDS_PER_DAY": Kind(
        429, "The tenant's GPU-seconds of the day are used up", "Submit again tomorrow (UTC).", retryable=True
    ),
    "INTERNAL": Kind(500, "Something went wrong on our side", "Give the operator the id in `instance`."),
    "VERIFICATION_FAILED": Kind(
        500, "A stored file is not what was stored", "Give the operator the id in `instance`; restore the file."
    ),
    "STORE_UNAVAILABLE": Kind(503, "The record cannot be reached", "Try again; nothing was changed.", retryable=True),
    "IDENTITY_UNAVAILABLE": Kind(
        503, "The identity provider cannot be reached", "Try again a little later, or use a key.", retryable=True
    ),
    "BUSY": Kind(503, "The server is busy", "Try again a little later.", retryable=True),
    "NOT_READY": Kind(503, "The server is not ready", "Try again a little later.", retryable=True),
    "STORAGE_FULL": Kind(507, "There is no room left", "Have the operator free some space, then submit again."),
}

_BY_STATUS = {
    400: "MALFORMED_REQUEST",
    401: "UNAUTHENTICATED",
    403: "FOREIGN_ORIGIN",
    404: "NOT_FOUND",
    405: "METHOD_NOT_ALLOWED",
    409: "CONFLICT",
    412: "OUTDATED",
    413: "BODY_TOO_LARGE",
    415: "UNSUPPORTED_MEDIA_TYPE",
    422: "INVALID",
    429: "RATE_LIMITED",
    503: "BUSY",
}


class FieldProblem(BaseModel):
    """One mistake. `pointer` is a JSON pointer into what `location` names."""

    model_config = ConfigDict(frozen=True)

    location: str
    """`body`, `query`, `path` or `header`."""
    pointer: str
    code: str
    message: str
    """What is wrong and what to do about it."""
    allowed: list[str]
    """What could stand there instead; empty when that is no short list."""


class Problem(BaseModel):
    """What every answer of 400 and above looks like."""

    model_config = ConfigDict(frozen=True)

    type: str
    """The page of this kind of problem, relative to this server."""
    title: str
    status: int
    detail: str
    instance: str
    """The id of the request, as in X-Request-Id."""
    code: str
    errors: list[FieldProblem]
    retryable: bool


class Refusal(StillhouseError):
    """
    A problem of the web's own, by its code in `KINDS`. `parameter` names the query parameter at fault, and `allowed`
    what could stand in it.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        parameter: str | None = None,
        allowed: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.code, self.headers, self.parameter, self.allowed = code, headers, parameter, tuple(allowed)


def page_of(code: str) -> str:
    return f"/problems/{code.lower().replace('_', '-')}"


def problem(
    code: str, detail: str, request_id: str, *, status: int | None = None, errors: Iterable[FieldProblem] = ()
) -> Problem:
    """A problem document; `status` is needed only for a code that is not in `KINDS`, such as a plugin's own."""
    kind = KINDS.get(code) or Kind(status or 500, HTTPStatus(status or 500).phrase, "")
    return Problem(
        type=page_of(code),
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=request_id,
        code=code,
        errors=list(errors),
        retryable=kind.retryable,
    )


def response(found: Problem, headers: Mapping[str, str] | None = None) -> JSONResponse:
    kind = KINDS.get(found.code)
    waiting = {"Retry-After": str(kind.retry_after)} if kind and kind.retry_after else {}
    return JSONResponse(
        found.model_dump(), status_code=found.status, headers={**waiting, **(headers or {})}, media_type=MEDIA_TYPE
    )


def code_of(status: int) -> str:
    return _BY_STATUS.get(status) or ("INTERNAL" if status >= 500 else "MALFORMED_REQUEST")


def request_id(request: Request) -> str:
    return str(request.state.request_id)


def on_user_error(request: Request, error: UserError) -> JSONResponse:
    errors = [_field_problem("body", found) for found in error.errors]
    return response(problem(error.code, error.message, request_id(request), status=422, errors=errors))


def on_refusal(request: Request, error: Refusal) -> JSONResponse:
    errors = []
    if error.parameter is not None:
        fault = FieldError(f"/{error.parameter}", "INVALID_VALUE", error.message, error.allowed)
        errors = [_field_problem("query", fault)]
    return response(problem(error.code, error.message, request_id(request), errors=errors), error.headers)


def on_quota_spent(request: Request, error: QuotaSpent) -> JSONResponse:
    # The SDK would wait for Retry-After in silence; whoever has too much already had better know it at once.
    headers = {"Retry-After": str(error.retry_seconds), "X-Should-Retry": "false"}
    return response(problem(error.code, error.message, request_id(request)), headers)


def on_busy(request: Request, error: CheckerBusy) -> JSONResponse:
    return response(problem("BUSY", error.message, request_id(request)))


def on_outdated(request: Request, error: Outdated) -> JSONResponse:
    # Only whoever has said which revision it means has seen another; for anybody else it is two at one moment.
    code = "OUTDATED" if "if-match" in request.headers else "CONFLICT"
    return response(problem(code, error.message, request_id(request)))


def on_ledger_error(request: Request, error: LedgerError) -> JSONResponse:
    code = error.code if error.code in KINDS else "CONFLICT"
    return response(problem(code, error.message, request_id(request)))


def on_store_unavailable(request: Request, error: StoreUnavailable) -> JSONResponse:
    logger.warning("%s: the store cannot be reached: %s", request_id(request), error)
    detail = "The record cannot be reached at the moment. Nothing was changed; try again in some seconds."
    return response(problem("STORE_UNAVAILABLE", detail, request_id(request)))


def on_storage_full(request: Request, error: StorageFull) -> JSONResponse:
    logger.error("%s: no room left: %s", request_id(request), error)
    detail = "There is no room left to put this on record. Have the operator free some space, then submit again."
    return response(problem("STORAGE_FULL", detail, request_id(request)))


def on_failure(request: Request, error: StillhouseError) -> JSONResponse:
    """What of our own tree is nobody's mistake but ours."""
    logger.error("%s: %s: %s", request_id(request), type(error).__name__, error, exc_info=error)
    return response(internal(request_id(request), error.code if error.code in KINDS else "INTERNAL"))


def internal(instance: str, code: str = "INTERNAL") -> Problem:
    return problem(code, f"The server failed at this request. Its log says why, under {instance}.", instance)


def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
    code, path, headers = code_of(error.status_code), request.url.path, dict(error.headers or {})
    match error.status_code:
        case 404:
            detail = f"There is nothing at {path[:256]}; GET /openapi.json describes what there is."
        case 405:
            # The framework names those of one route only.
            headers["Allow"] = ", ".join(_methods(request)) or headers.get("Allow", "GET")
            detail = f"{request.method} is not offered at {path[:256]}; {headers['Allow']} is."
        case _:
            detail = f"{KINDS[code].title}. {KINDS[code].remedy}"
    return response(problem(code, detail, request_id(request)), headers)


def _methods(request: Request) -> list[str]:
    """What is offered at the path of a request, as the OpenAPI document of this very server says."""
    paths = request.app.openapi()["paths"]
    found = [path for path in paths if compile_path(path)[0].match(request.url.path)]
    # An id could hold a colon for all that `/jobs/{id}` knows, but `/jobs/{id}:cancel` says more of the path.
    best = max(found, key=_literal, default="")
    return sorted(method.upper() for method in paths.get(best, ()))


def _literal(path: str) -> int:
    """How many characters of a path are given."""
    return len(_PARAMETER.sub("", path))


_PARAMETER = re.compile(r"\{[^}]*\}")


def on_invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    """Query, path and header parameters; bodies are read by `service.deps`."""
    errors = [_parameter_problem(request, found) for found in error.errors()]
    detail = "; ".join(f"{found.location} {found.pointer}: {found.message}" for found in errors)
    return response(problem("INVALID_PARAMETER", detail, request_id(request), errors=errors))


HANDLERS: dict[int | type[Exception], Any] = {
    UserError: on_user_error,
    Outdated: on_outdated,
    LedgerError: on_ledger_error,
    StoreUnavailable: on_store_unavailable,
    StorageFull: on_storage_full,
    Refusal: on_refusal,
    CheckerBusy: on_busy,
    QuotaSpent: on_quota_spent,
    StillhouseError: on_failure,
    HTTPException: on_http_exception,
    RequestValidationError: on_invalid_request,
}


def _field_problem(location: str, found: FieldError) -> FieldProblem:
    return FieldProblem(
        location=location,
        pointer=found.pointer,
        code=found.code,
        message=found.message,
        allowed=list(found.allowed),
    )


def _parameter_problem(request: Request, found: Mapping[str, Any]) -> FieldProblem:
    location, *path = (str(step) for step in found["loc"])
    name = path[-1] if path else ""
    code, message, allowed = "INVALID_VALUE", str(found["msg"]), list[str]()
    match found["type"]:
        case "extra_forbidden":
            allowed = _parameters(request, location)
            code, message = "UNKNOWN_PARAMETER", f"there is no parameter `{name}` here{did_you_mean(name, allowed)}"
        case "enum" | "literal_error":
            message = f"must be {found['ctx']['expected']}"
    return FieldProblem(location=location, pointer=f"/{name}", code=code, message=message, allowed=allowed)


def _parameters(request: Request, location: str) -> list[str]:
    """The names of an operation's parameters, as the OpenAPI document of this very server gives them."""
    operation = request.app.openapi()["paths"][request.scope["route"].path][request.method.lower()]
    return sorted(found["name"] for found in operation.get("parameters", ()) if found["in"] == location)
