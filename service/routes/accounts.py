"""A tenant's own affairs: its keys, what it has used, and what was done in its name."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Response

from service.auth import CallerDep, may_administer, may_read
from service.deps import AccountDep, JsonBody, KeyId, read_body
from service.description import answers, body
from service.routes import pages
from service.routes.creation import creation, made
from service.schemas import (
    AuditEntry,
    AuditPage,
    KeyDocument,
    KeyPage,
    KeyRequest,
    NewKey,
    Paging,
    QuotaUse,
    Usage,
)
from service.store.values import Key, Quota

router = APIRouter(prefix="/v1", tags=["account"])

_SECRET = "sth_made-up-example-of-a-key-0123456789abcdefghi"  # noqa: S105 - it opens nothing
_KEY = {
    "id": "key_01ke7bq8k0f7m2s5v9x3y6z1ab",
    "tenant": "vision",
    "name": "nightly compression",
    "scope": "submit",
    "created_at": "2026-01-05T09:30:00Z",
    "expires_at": "2026-04-05T09:30:00Z",
    "revoked_at": None,
    "last_used_at": None,
}
_ASKED = {"name": "nightly compression", "scope": "submit", "expires_in_seconds": 7_776_000}
_ENTRY = {
    "id": "audit_01ke7bq8k0f7m2s5v9x3y6z1ab",
    "at": "2026-01-05T09:30:00Z",
    "actor": "key_01ke7bq8k0f7m2s5v9x3y6z1aa",
    "action": "keys.create",
    "object": "key_01ke7bq8k0f7m2s5v9x3y6z1ab",
    "request_id": "req_01ke7bq8k0f7m2s5v9x3y6z1ab",
}
_USAGE = {
    "tenant": "vision",
    "quotas": {
        quota: {"used": used, "limit": limit}
        for quota, (used, limit) in zip(
            Quota, [(3.0, 100), (8.0, 64), (51_840.0, 1_000_000), (0.0, None), (1_250_300.0, None)], strict=True
        )
    },
}


@router.post(
    "/keys",
    operation_id="keys.create",
    dependencies=[may_administer],
    status_code=201,
    response_model=NewKey,
    responses={
        **creation("key", {**_KEY, "key": _SECRET}, "get", "revoke", told="shown this once", once=False),
        **answers(
            "MALFORMED_JSON",
            "UNAUTHENTICATED",
            "BODY_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
            "INVALID",
            "STORAGE_FULL",
        ),
    },
    openapi_extra=body(KeyRequest, _ASKED),
)
def create_key(document: JsonBody, account: AccountDep) -> Response:
    """Make a key of the caller's own tenant. Only its SHA-256 is kept: what this answers cannot be asked for again."""
    asked = read_body(KeyRequest, document)
    key, secret = account.create_key(asked.name, asked.scope, asked.expires_in_seconds)
    return made(NewKey(**asdict(key), key=secret), f"/v1/keys/{key.id}")


@router.get(
    "/keys",
    operation_id="keys.list",
    dependencies=[may_administer],
    responses=answers("UNAUTHENTICATED", "INVALID_PARAMETER", example={"keys": [_KEY], "next_page_token": ""}),
)
def list_keys(paging: Annotated[Paging, Query()], account: AccountDep) -> KeyPage:
    """The keys of the caller's tenant, newest first, a page at a time."""
    found = account.keys(limit=paging.size + 1, before=pages.read(paging.page_token))
    page, token = pages.cut(found, paging.size, lambda key: (key.created_at, key.id))
    return KeyPage(keys=[_document(key) for key in page], next_page_token=token)


@router.get(
    "/keys/{key_id}",
    operation_id="keys.get",
    dependencies=[may_administer],
    responses=answers("UNAUTHENTICATED", "NOT_FOUND", example=_KEY),
)
def get_key(key_id: KeyId, account: AccountDep) -> KeyDocument:
    """One key, but for the key itself."""
    return _document(account.key(key_id))


@router.delete(
    "/keys/{key_id}",
    operation_id="keys.revoke",
    dependencies=[may_administer],
    status_code=204,
    response_class=Response,
    responses={
        204: {"description": "It is good for nothing from now on"},
        **answers("UNAUTHENTICATED", "NOT_FOUND", "STORAGE_FULL"),
    },
)
def revoke_key(key_id: KeyId, account: AccountDep) -> Response:
    """Revoke a key. It stays in the list, for those who read the audit. Again changes nothing."""
    account.revoke_key(key_id)
    return Response(status_code=204)


@router.get(
    "/audit",
    operation_id="audit",
    dependencies=[may_administer],
    responses=answers("UNAUTHENTICATED", "INVALID_PARAMETER", example={"entries": [_ENTRY], "next_page_token": ""}),
)
def list_audit(paging: Annotated[Paging, Query()], account: AccountDep) -> AuditPage:
    """Who has changed what in the name of the caller's tenant, newest first, a page at a time."""
    found = account.audit(limit=paging.size + 1, before=pages.read(paging.page_token))
    page, token = pages.cut(found, paging.size, lambda entry: (entry.at, entry.id))
    return AuditPage(entries=[AuditEntry(**asdict(entry)) for entry in page], next_page_token=token)


@router.get(
    "/usage",
    operation_id="usage",
    dependencies=[may_read],
    responses=answers("UNAUTHENTICATED", example=_USAGE),
)
def usage(caller: CallerDep, account: AccountDep) -> Usage:
    """What the caller's tenant uses, and what it may."""
    shares = account.usage().items()
    return Usage(tenant=caller.tenant, quotas={quota: QuotaUse(**asdict(share)) for quota, share in shares})


def _document(key: Key) -> KeyDocument:
    return KeyDocument(**asdict(key))
