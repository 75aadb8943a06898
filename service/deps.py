"""What routes are given: the parts of the server, and the request's body and ids once they have been checked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from email.message import Message
from typing import Annotated, Any, NoReturn, TypeVar

from fastapi import Depends, Header, Request
from pydantic import BaseModel

from search.errors import FieldError, InvalidSpec, NotFound
from search.part import Part, read_part
from service import journal
from service.asking import Asking, Questions
from service.auth import CallerDep
from service.problems import Refusal
from service.settings import Settings
from service.store.ports import Account, Jobs, Record, Register, Uploads, Views, Webhooks
from service.store.values import Once
from workers.ports import Artifacts

DEEPEST = 32
"""Levels of nesting in a body."""
_LARGEST_DIGITS = 400
"""A number written longer than that is no number of ours, and costs quadratic time to read."""


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


async def _record(request: Request) -> Record:
    record: Record = request.app.state.record
    return record


async def _jobs(request: Request, caller: CallerDep) -> Jobs:
    record: Record = request.app.state.record
    return record.jobs(caller)


async def _views(request: Request, caller: CallerDep) -> Views:
    record: Record = request.app.state.record
    return record.views(caller)


async def _account(request: Request, caller: CallerDep) -> Account:
    record: Record = request.app.state.record
    return record.account(caller)


async def _webhooks(request: Request, caller: CallerDep) -> Webhooks:
    record: Record = request.app.state.record
    return record.webhooks(caller)


async def _artifacts(request: Request) -> Artifacts:
    artifacts: Artifacts = request.app.state.artifacts
    return artifacts


async def _asking(request: Request, caller: CallerDep) -> Questions:
    record: Record = request.app.state.record
    asking: Asking = request.app.state.asking
    return asking.of(caller, record)


async def _uploads(request: Request, caller: CallerDep) -> Uploads:
    record: Record = request.app.state.record
    return record.uploads(caller)


async def _teachers(request: Request, caller: CallerDep) -> Register:
    record: Record = request.app.state.record
    return record.teachers(caller)


async def _datasets(request: Request, caller: CallerDep) -> Register:
    record: Record = request.app.state.record
    return record.datasets(caller)


P = TypeVar("P", bound=Part)


def _of_form(kind: str, prefix: str, given: str) -> str:
    """Ids of another form are not asked for: a database may choke on a NUL, and there is no such thing anyway."""
    if not re.fullmatch(rf"{prefix}_[0-9a-z]{{26}}", given):
        raise NotFound(f"there is no {kind} `{given[:64]}`")
    return given


async def _job_id(job_id: str) -> str:
    _of_form("job", "job", job_id)
    journal.about(job_id=job_id)
    return job_id


async def _trial_id(trial_id: str) -> str:
    return _of_form("trial", "trial", trial_id)


async def _key_id(key_id: str) -> str:
    return _of_form("key", "key", key_id)


async def _webhook_id(webhook_id: str) -> str:
    return _of_form("webhook", "webhook", webhook_id)


async def _delivery_id(delivery_id: str) -> str:
    return _of_form("delivery", "delivery", delivery_id)


async def _upload_id(upload_id: str) -> str:
    return _of_form("upload", "upl", upload_id)


async def _teacher_id(teacher_id: str) -> str:
    return _of_form("teacher", "tch", teacher_id)


async def _dataset_id(dataset_id: str) -> str:
    return _of_form("dataset", "ds", dataset_id)


async def _idempotency_key(
    request: Request,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=128,
            pattern=r"^[\x21-\x7e]+$",
            description="A word of your own for this request. Sent again with the same body, it makes nothing anew and "
            "gives what it made the first time.",
            examples=["3f1c6d1e-digits"],
        ),
    ] = None,
) -> str | None:
    if len(request.headers.getlist("idempotency-key")) > 1:
        raise Refusal("MALFORMED_REQUEST", "Send one Idempotency-Key, not several.")
    return idempotency_key


def once(route: str, key: str | None, *asked: object) -> Once | None:
    """
    How the request is known when it is sent again; None when it came without a key. `asked` is all that it asks for:
    the models that were read from its body, and the ids in its path.
    """
    if key is None:
        return None
    said = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in asked]
    return Once(route, key, hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest())


class InvalidBody(InvalidSpec):
    """A body other than a job's has mistakes."""

    code = "INVALID"


def read_body(kind: type[P], document: object) -> P:
    """
    What a body says.

    Raises:
        InvalidBody: one `FieldError` for every mistake.
    """
    try:
        return read_part(kind, document)
    except InvalidSpec as error:
        raise InvalidBody(error.errors) from None


async def _json_body(request: Request) -> Any:
    """
    The decoded body.

    Raises:
        Refusal: it is not declared as JSON (415), or is not JSON that every later reader can take (400).
    """
    _expect_json(request.headers.get("content-type", ""))
    return read_json(await request.body())


async def _merge_patch(request: Request) -> dict[str, Any]:
    """A merge patch of an object; raises as `_json_body` does, and `InvalidBody` when it is none."""
    _expect_json(request.headers.get("content-type", ""), MERGE_PATCH, "application/json")
    patch = read_json(await request.body())
    if not isinstance(patch, dict):
        raise InvalidBody([FieldError("", "INVALID_VALUE", "write an object with the fields to change")])
    return patch


async def _optional_patch(request: Request) -> dict[str, Any]:
    """Empty without a body."""
    return await _merge_patch(request) if await request.body() else {}


MERGE_PATCH = "application/merge-patch+json"


def _expect_json(content_type: str, *kinds: str) -> None:
    kinds = kinds or ("application/json",)
    if content_type in kinds:
        return
    declared = Message()
    declared["content-type"] = content_type
    charset = str(declared.get_param("charset", "utf-8")).lower()
    if declared.get_content_type() not in kinds or charset not in ("utf-8", "us-ascii"):
        raise Refusal("UNSUPPORTED_MEDIA_TYPE", f"Send the body as JSON in UTF-8, with `Content-Type: {kinds[0]}`.")


def read_json(body: bytes) -> Any:
    """
    Stricter than the standard reader: no NaN, no infinity, no name twice in one object, no character that is half of
    a pair or NUL, at most `DEEPEST` levels.

    Raises:
        Refusal: it is not such JSON (400).
    """
    if not body:
        raise Refusal("MALFORMED_JSON", "The body is empty; send one JSON object.")
    try:
        text = body.decode("utf-8")
        _check_depth(text)
        document = json.loads(
            text, parse_constant=_no_constant, parse_int=_int, parse_float=_float, object_pairs_hook=_object
        )
    except UnicodeDecodeError:
        raise Refusal("MALFORMED_JSON", "The body is not encoded as UTF-8; encode it so.") from None
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        message = f"The body is not JSON at {place}: {error.msg}. Check quotes, commas and brackets there."
        raise Refusal("MALFORMED_JSON", message) from None
    if any(_INDECENT.search(text) for text in _texts(document)):
        raise Refusal("MALFORMED_JSON", "A text holds NUL or half of a surrogate pair; take that character out.")
    return document


def _check_depth(text: str) -> None:
    """Before parsing: the parser recurses, and brackets inside texts are skipped as it would skip them."""
    depth = 0
    for bracket in _BRACKETS.finditer(text):
        match bracket[0][0]:
            case "[" | "{":
                depth += 1
                if depth > DEEPEST:
                    raise Refusal("MALFORMED_JSON", f"The body is nested deeper than {DEEPEST} levels; flatten it.")
            case "]" | "}":
                depth -= 1


_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)


def _no_constant(name: str) -> NoReturn:
    raise Refusal("MALFORMED_JSON", f"{name} is not JSON; write a finite number, or null where that is allowed.")


def _int(digits: str) -> int:
    _check_digits(digits)
    return int(digits)


def _float(digits: str) -> float:
    _check_digits(digits)
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        _no_constant(digits)
    return number


def _check_digits(digits: str) -> None:
    if len(digits) > _LARGEST_DIGITS:
        raise Refusal("MALFORMED_JSON", f"A number is written with more than {_LARGEST_DIGITS} digits; shorten it.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise Refusal("MALFORMED_JSON", f"`{name[:64]}` stands twice in one object; keep one.")
        document[name] = value
    return document


def _texts(document: Any) -> Iterator[str]:
    match document:
        case str():
            yield document
        case list():
            for item in document:
                yield from _texts(item)
        case dict():
            for name, value in document.items():
                yield name
                yield from _texts(value)


_INDECENT = re.compile("[\0\ud800-\udfff]")


SettingsDep = Annotated[Settings, Depends(_settings)]
RecordDep = Annotated[Record, Depends(_record)]
AccountDep = Annotated[Account, Depends(_account)]
JobsDep = Annotated[Jobs, Depends(_jobs)]
WebhooksDep = Annotated[Webhooks, Depends(_webhooks)]
ArtifactsDep = Annotated[Artifacts, Depends(_artifacts)]
AskingDep = Annotated[Questions, Depends(_asking)]
UploadsDep = Annotated[Uploads, Depends(_uploads)]
TeachersDep = Annotated[Register, Depends(_teachers)]
DatasetsDep = Annotated[Register, Depends(_datasets)]
UploadId = Annotated[str, Depends(_upload_id)]
TeacherId = Annotated[str, Depends(_teacher_id)]
DatasetId = Annotated[str, Depends(_dataset_id)]
KeyId = Annotated[str, Depends(_key_id)]
WebhookId = Annotated[str, Depends(_webhook_id)]
DeliveryId = Annotated[str, Depends(_delivery_id)]
ViewsDep = Annotated[Views, Depends(_views)]
TrialId = Annotated[str, Depends(_trial_id)]
JobId = Annotated[str, Depends(_job_id)]
IdempotencyKey = Annotated[str | None, Depends(_idempotency_key)]
JsonBody = Annotated[Any, Depends(_json_body)]
MergePatch = Annotated[dict[str, Any], Depends(_merge_patch)]
OptionalPatch = Annotated[dict[str, Any], Depends(_optional_patch)]
