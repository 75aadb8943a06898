"""Where a tenant is told of its jobs, and what became of each letter."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from search.errors import FieldError
from service.auth import may_administer
from service.deps import DeliveryId, IdempotencyKey, InvalidBody, JsonBody, WebhookId, WebhooksDep, once, read_body
from service.description import answers, body
from service.egress import Forbidden, Gate
from service.problems import Refusal
from service.routes import pages
from service.routes.creation import creation, made
from service.schemas import (
    DeliveryDocument,
    DeliveryPage,
    DeliveryPaging,
    NewWebhook,
    Paging,
    WebhookDocument,
    WebhookPage,
    WebhookRequest,
)
from service.store.values import Delivery, Webhook

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], dependencies=[may_administer])

_WEBHOOK: dict[str, Any] = {
    "id": "webhook_01ke7bq8k0f7m2s5v9x3y6z1ab",
    "url": "https://hooks.example.org/stillhouse",
    "kinds": ["JOB_SUCCEEDED", "JOB_FAILED"],
    "created_at": "2026-01-05T09:30:00Z",
    "disabled_at": None,
}
_ASKED = {"url": _WEBHOOK["url"], "kinds": _WEBHOOK["kinds"]}
_SECRET = "whsec_TWFkZSB1cCBmb3IgdGhpcyBleGFtcGxlIG9ubHk="  # noqa: S105 - made up, as it says in base64
_DEAD: dict[str, Any] = {
    "id": "delivery_01ke7bz3d5f7m2s5v9x3y6z1ab",
    "webhook_id": _WEBHOOK["id"],
    "kind": "JOB_SUCCEEDED",
    "job_id": "job_01ke7bq8k0f7m2s5v9x3y6z1ab",
    "seq": 87,
    "state": "DEAD",
    "created_at": "2026-01-05T09:32:11Z",
    "attempts": 19,
    "next_at": None,
    "delivered_at": None,
    "dead_at": "2026-01-06T09:32:12Z",
    "status": 503,
    "error": "the receiver answered 503",
}
_DUE = {**_DEAD, "state": "WAITING", "next_at": "2026-01-06T10:00:00Z", "dead_at": None}
_TEST = {**_DUE, "kind": "WEBHOOK_TEST", "job_id": None, "seq": None, "attempts": 0, "status": None, "error": ""}
_TEST |= {"created_at": _TEST["next_at"]}
_ON_A_WEBHOOK = ("UNAUTHENTICATED", "NOT_FOUND")


@router.post(
    "",
    operation_id="webhooks.create",
    status_code=201,
    response_model=NewWebhook,
    responses={
        **creation(
            "webhook",
            {**_WEBHOOK, "secret": _SECRET},
            *("get", "delete", "deliveries", "test"),
            told="with its secret",
        ),
        **answers(
            "MALFORMED_JSON",
            "MALFORMED_REQUEST",
            "UNAUTHENTICATED",
            "WEBHOOKS_OFF",
            "BODY_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
            "INVALID",
            "INVALID_PARAMETER",
            "IDEMPOTENCY_KEY_REUSED",
            "TOO_MANY_WEBHOOKS",
            "STORAGE_FULL",
        ),
    },
    openapi_extra=body(WebhookRequest, _ASKED),
)
def create_webhook(request: Request, document: JsonBody, key: IdempotencyKey, webhooks: WebhooksDep) -> Response:
    """
    Have the tenant's jobs told to a receiver of yours, from now on. Letters are signed with the `secret` of this
    answer, and sent until they are answered by 2xx, for a day. The receiver's host must be one that the operator
    allows; it is not asked anything now.
    """
    asked = read_body(WebhookRequest, document)
    gate: Gate = request.app.state.gate
    if gate.closed:
        raise Refusal("WEBHOOKS_OFF", "This server sends nothing to webhooks: STILLHOUSE_WEBHOOK_HOSTS names no host.")
    try:
        gate.check(asked.url)
    except Forbidden as error:
        raise InvalidBody([FieldError("/url", error.code, error.message)]) from None
    found, created = webhooks.create(asked.url, asked.kinds, once=once("webhooks.create", key, asked))
    return made(NewWebhook(**_fields(found), secret=found.secret), f"/v1/webhooks/{found.id}", new=created)


@router.get(
    "",
    operation_id="webhooks.list",
    responses=answers("UNAUTHENTICATED", "INVALID_PARAMETER", example={"webhooks": [_WEBHOOK], "next_page_token": ""}),
)
def list_webhooks(paging: Annotated[Paging, Query()], webhooks: WebhooksDep) -> WebhookPage:
    """The webhooks of the caller's tenant, newest first, a page at a time."""
    found = webhooks.webhooks(limit=paging.size + 1, before=pages.read(paging.page_token, of="webhooks"))
    page, token = pages.cut(found, paging.size, lambda each: (each.created_at, each.id), of="webhooks")
    return WebhookPage(webhooks=[_document(each) for each in page], next_page_token=token)


@router.get("/{webhook_id}", operation_id="webhooks.get", responses=answers(*_ON_A_WEBHOOK, example=_WEBHOOK))
def get_webhook(webhook_id: WebhookId, webhooks: WebhooksDep) -> WebhookDocument:
    """One webhook, but for its secret."""
    return _document(webhooks.webhook(webhook_id))


@router.delete(
    "/{webhook_id}",
    operation_id="webhooks.delete",
    status_code=204,
    response_class=Response,
    responses={204: {"description": "Nothing more is sent to it"}, **answers(*_ON_A_WEBHOOK, "STORAGE_FULL")},
)
def delete_webhook(webhook_id: WebhookId, webhooks: WebhooksDep) -> Response:
    """Delete a webhook, and with it what still waits to be sent to it. An attempt under way may still arrive."""
    webhooks.delete(webhook_id)
    return Response(status_code=204)


@router.post(
    "/{webhook_id}:test",
    operation_id="webhooks.test",
    status_code=202,
    responses=answers(*_ON_A_WEBHOOK, "STORAGE_FULL", example=_TEST, status=202),
)
def test_webhook(webhook_id: WebhookId, webhooks: WebhooksDep) -> DeliveryDocument:
    """Send a letter of kind `WEBHOOK_TEST`, which tells of no job. The list of deliveries says what became of it."""
    return _delivery(webhooks.try_out(webhook_id))


@router.get(
    "/{webhook_id}/deliveries",
    operation_id="webhooks.deliveries",
    responses=answers(*_ON_A_WEBHOOK, "INVALID_PARAMETER", example={"deliveries": [_DEAD], "next_page_token": ""}),
)
def list_deliveries(
    webhook_id: WebhookId, paging: Annotated[DeliveryPaging, Query()], webhooks: WebhooksDep
) -> DeliveryPage:
    """What was to be sent to a webhook and what became of it, newest first, a page at a time."""
    before = pages.read(paging.page_token, of=_name_of(webhook_id, paging))
    found = webhooks.deliveries(webhook_id, limit=paging.size + 1, before=before, state=paging.state)
    page, token = pages.cut(
        found, paging.size, lambda each: (each.created_at, each.id), of=_name_of(webhook_id, paging)
    )
    return DeliveryPage(deliveries=[_delivery(each) for each in page], next_page_token=token)


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}:replay",
    operation_id="webhooks.replay",
    status_code=202,
    responses=answers(*_ON_A_WEBHOOK, "STORAGE_FULL", example=_DUE, status=202),
)
def replay(webhook_id: WebhookId, delivery_id: DeliveryId, webhooks: WebhooksDep) -> DeliveryDocument:
    """
    Send again what was delivered or given up, under the same `webhook-id` and with the same body. What still waits
    stays as it is.
    """
    return _delivery(webhooks.replay(webhook_id, delivery_id))


def _name_of(webhook_id: str, paging: DeliveryPaging) -> str:
    """Of a list, for its page tokens."""
    return f"{webhook_id} {paging.state or ''}"


def _document(found: Webhook) -> WebhookDocument:
    return WebhookDocument(**_fields(found))


def _fields(found: Webhook) -> dict[str, Any]:
    return {name: value for name, value in asdict(found).items() if name != "secret"}


def _delivery(found: Delivery) -> DeliveryDocument:
    return DeliveryDocument(**asdict(found))
