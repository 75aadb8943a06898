"""What has just been made: how such an answer is described, and given."""

from __future__ import annotations

from typing import Any

from fastapi import Response
from pydantic import BaseModel

from service.description import shown

REPLAYED = {"Idempotency-Replayed": "true"}


def creation(
    kind: str, example: Any, *follows: str, told: str = "on record", once: bool = True, **headers: str
) -> dict[int | str, Any]:
    """
    How `responses` of a POST describe its success. `kind` is what is made, `follows` are the operations that its id can
    be given to next, `once` says that it takes an Idempotency-Key, and `headers` what the answer bears besides.
    """
    said = {"Location": f"The {kind}'s address", **headers}
    if once:
        said["Idempotency-Replayed"] = f"`true` when the key had made this {kind} before"
    described = {name: {"description": text, "schema": {"type": "string"}} for name, text in said.items()}
    of_this = {"parameters": {f"{kind}_id": "$response.body#/id"}}
    return {
        201: {
            "description": f"The {kind}, {told}",
            "content": {"application/json": {"example": shown(example)}},
            "headers": described,
            "links": {name: {"operationId": f"{kind}s.{name}", **of_this} for name in follows},
        }
    }


def made(document: BaseModel, address: str, *, new: bool = True, **headers: str) -> Response:
    """The answer itself; `new` is false when an earlier request with the same key had made it."""
    headers = {"Location": address, **headers} | ({} if new else REPLAYED)
    return Response(document.model_dump_json(), 201, headers, media_type="application/json")
