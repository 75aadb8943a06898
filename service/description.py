"""
How the API describes itself: the OpenAPI document, with every answer of every operation and an example of each.

The document is committed as `docs/openapi.json`, so that a change of the API is seen as one.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from search.errors import FieldError
from search.spec import JobSpec
from service.problems import KINDS, MEDIA_TYPE, FieldProblem, Problem, problem
from service.store.values import Scope

_REF = "#/components/schemas/{model}"
_ALWAYS = ("MALFORMED_REQUEST", "UNKNOWN_HOST", "FOREIGN_ORIGIN", "INTERNAL")
_GUARDED = ("UNAUTHENTICATED", "FORBIDDEN", "RATE_LIMITED", "BUSY", "IDENTITY_UNAVAILABLE", "STORE_UNAVAILABLE")
"""Of operations that ask for a key: it is looked up, and may be asked too often."""
_WAITING = {
    name: {"description": told, "schema": {"type": "string"}}
    for name, told in {
        "Retry-After": "Seconds",
        "RateLimit": "What is left of the key's requests, and the seconds until there is more",
        "RateLimit-Policy": "Requests (q) that may come in so many seconds (w)",
    }.items()
}
_SAID = {
    "INVALID_SPEC": FieldError(
        "/search/trails", "UNKNOWN_FIELD", 'unknown field `trails`, did you mean "trials"?', ("trials",)
    ),
    "UNKNOWN_NAME": FieldError(
        "/teacher/name",
        "UNKNOWN_NAME",
        'no teacher is called `small_resnt`, did you mean "small_resnet"?',
        ("small_resnet",),
    ),
    "BUDGET_IMPOSSIBLE": FieldError(
        "/budget/macs",
        "BUDGET_IMPOSSIBLE",
        "no student of this teacher has macs <= 100: the smallest reachable is 801,312 (3.50 % of the teacher's "
        "22,901,345). Raise the limit, or widen the space.",
    ),
    "INVALID_PARAMETER": FieldError("/page_size", "INVALID_VALUE", "Input should be greater than or equal to 1"),
}


def answers(*codes: str, example: Any = None, status: int = 200) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route: an example of its success, and every problem it may answer with."""
    described: dict[int | str, dict[str, Any]] = {}
    if example is not None:
        described[status] = {"content": {"application/json": {"example": shown(example)}}}
    guarded = _GUARDED if "UNAUTHENTICATED" in codes else ()
    sent = ("TOO_SLOW",) if "BODY_TOO_LARGE" in codes else ()
    for code in sorted({*codes, *guarded, *sent, *_ALWAYS}, key=lambda code: (KINDS[code].status, code)):
        kind = KINDS[code]
        known = described.setdefault(
            kind.status,
            {
                "description": HTTPStatus(kind.status).phrase,
                "content": {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}, "examples": {}}},
                "headers": {"X-Request-Id": {"schema": {"type": "string"}}},
            },
        )
        if kind.status == 429:
            known["headers"] |= _WAITING
        known["content"][MEDIA_TYPE]["examples"][code] = {"summary": kind.title, "value": _example(code)}
    return described


def shown(example: Any) -> str:
    """An example as a route gives it: as text, since FastAPI drops every null from what it passes on."""
    return json.dumps(example)


def _example(code: str) -> dict[str, Any]:
    said = _SAID.get(code)
    if said is None:
        return problem(code, KINDS[code].remedy, "req_01ke7bq8k0f7m2s5v9x3y6z1ab").model_dump()
    found = FieldProblem(
        location="query" if code == "INVALID_PARAMETER" else "body",
        pointer=said.pointer,
        code=said.code,
        message=said.message,
        allowed=list(said.allowed),
    )
    return problem(code, said.message, "req_01ke7bq8k0f7m2s5v9x3y6z1ab", errors=[found]).model_dump()


def spec_body(example: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a job spec; `service.deps.JsonBody` is what reads it."""
    schema = {"$ref": _REF.format(model="JobSpec")}
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": shown(example)}},
        }
    }


def patch_body(
    schema: dict[str, Any], example: dict[str, Any], description: str, *, required: bool = True
) -> dict[str, Any]:
    """`openapi_extra` of a route that reads a merge patch (RFC 7396) of objects with the properties of `schema`."""
    closed = {"type": "object", "additionalProperties": False, "properties": schema}
    content = {"schema": closed, "example": shown(example)}
    return {
        "requestBody": {
            "required": required,
            "description": description,
            "content": {"application/merge-patch+json": content},
        }
    }


def body(kind: type[BaseModel], example: dict[str, Any]) -> dict[str, Any]:
    """`openapi_extra` of a route whose body `service.deps.read_body` reads as `kind`."""
    schema = kind.model_json_schema(ref_template=_REF)
    schema.pop("$defs", None)  # an enumeration that answers show too
    return {
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schema, "example": shown(example)}},
        }
    }


def describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, made once; FastAPI calls this as `app.openapi()`."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
            tags=app.openapi_tags,
        )
        for operations in document["paths"].values():
            for operation in operations.values():
                _finish(operation)
        components = document.setdefault("components", {}).setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            components.pop(unused, None)
        components.update(_schemas(JobSpec, mode="validation") | _schemas(Problem, mode="serialization"))
        app.openapi_schema = document
    return app.openapi_schema


def _finish(operation: dict[str, Any]) -> None:
    for requirement in operation.get("security", ()):
        for scheme, scopes in requirement.items():
            requirement[scheme] = [max(scopes, key=list(Scope).index)]  # the widest asked for covers the others
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _without_null(parameter["schema"])
    answers = operation["responses"]
    if MEDIA_TYPE not in answers.get("422", {}).get("content", {MEDIA_TYPE: {}}):
        del answers["422"]  # FastAPI adds its own wherever there is a parameter, even one that takes everything
    for body in (operation.get("requestBody", {}), *answers.values()):
        for content in body.get("content", {}).values():
            if "example" in content:
                content["example"] = json.loads(content["example"])


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Of a parameter that may be left out, what it is when it is there: no header or query says null."""
    match schema.get("anyOf"):
        case [dict() as kind, {"type": "null"}]:
            return kind | {name: value for name, value in schema.items() if name != "anyOf"}
    return schema


def _schemas(model: type[BaseModel], *, mode: Any) -> dict[str, Any]:
    _, found = models_json_schema([(model, mode)], ref_template=_REF)
    schemas: dict[str, Any] = found["$defs"]
    return schemas


def written(document: dict[str, Any]) -> str:
    """The text of the committed file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
