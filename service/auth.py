"""Who calls, and whether the key is good for what is asked."""

from __future__ import annotations

import hmac
import logging
from dataclasses import replace
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer, SecurityScopes
from fastapi.security.utils import get_authorization_scheme_param

from service import journal
from service.oidc import Provider, ProviderUnavailable, TokenRefused
from service.problems import Refusal, request_id
from service.settings import Settings
from service.store.ports import Record
from service.store.values import DEFAULT, Caller, Scope
from service.throttle import Throttle

logger = logging.getLogger("stillhouse.api")

_LONGEST_SUBJECT = 255
SETTINGS_KEY = "settings"
"""The actor who bears the key of STILLHOUSE_API_KEY."""
ANYONE = "anyone"
"""The actor where nobody is asked for a key."""


class _Bearer(HTTPBearer):
    """As a dependency, whoever bears the key of the request; in the description, how keys are sent."""

    async def __call__(self, request: Request) -> Caller:  # type: ignore[override]
        """
        Raises:
            Refusal: there is no key, or none that may be used (401); it was used too often (429).
        """
        # FastAPI asks again for each set of scopes; a request counts once, and its key is looked up once.
        if not hasattr(request.state, "caller"):
            known = _by_settings(request) or await run_in_threadpool(_by_record, request)
            traceparent = getattr(request.state, "traceparent", "")
            request.state.caller = replace(_admitted(request, known), traceparent=traceparent)
        caller: Caller = request.state.caller
        journal.about(tenant=caller.tenant)
        return caller


_bearer = _Bearer(
    scheme_name="apiKey",
    description="A key, as `stillhouse keys create` prints it, or a token of the operator's identity provider. "
    "The scopes are `read`, `submit` and `admin`, each good for what those before it are.",
)


def _admitted(request: Request, caller: Caller | None) -> Caller:
    """The caller, counted. Raises `Refusal`."""
    if caller is None:
        raise Refusal(
            "UNAUTHENTICATED",
            "Send a key that is neither revoked nor over as `Authorization: Bearer <key>`; "
            "`stillhouse keys create` makes one.",
            headers={"WWW-Authenticate": 'Bearer realm="stillhouse"'},
        )
    if caller.actor == ANYONE:
        return caller
    throttle: Throttle = request.app.state.throttle
    allowance = throttle.take(caller.actor)
    request.state.headers = allowance.headers
    if allowance.wait:
        raise Refusal(
            "RATE_LIMITED",
            f"This key may be used {throttle.rate:g} times a second; wait {allowance.wait} s.",
            headers={"Retry-After": str(allowance.wait)},
        )
    return caller


def _secret(request: Request) -> str:
    """Empty when the request bears none."""
    scheme, secret = get_authorization_scheme_param(request.headers.get("authorization"))
    return secret if scheme.lower() == "bearer" else ""


def _by_settings(request: Request) -> Caller | None:
    """A caller who is known without asking anybody."""
    settings: Settings = request.app.state.settings
    if settings.auth == "off":
        return Caller(DEFAULT, ANYONE, Scope.ADMIN, request_id(request))
    ours, secret = settings.api_key, _secret(request)
    if ours is None or not secret or not hmac.compare_digest(secret.encode(), ours.get_secret_value().encode()):
        return None
    return Caller(DEFAULT, SETTINGS_KEY, Scope.ADMIN, request_id(request))


def _by_record(request: Request) -> Caller | None:
    """A caller whose key is on record, or whom the identity provider knows."""
    secret = _secret(request)
    if not secret:
        return None
    record: Record = request.app.state.record
    provider: Provider | None = request.app.state.provider
    if provider is not None and secret.count(".") == 2:  # as in every JWT, and in no key of ours
        return _known_by(provider, record, secret, request_id(request))
    key = record.holder(secret)
    return None if key is None else Caller(key.tenant, key.id, key.scope, request_id(request))


def _known_by(provider: Provider, record: Record, token: str, request_id: str) -> Caller | None:
    try:
        identity = provider.identify(token)
    except TokenRefused as error:
        logger.info("%s: %s", request_id, error)
        return None
    except ProviderUnavailable as error:
        raise Refusal(error.code, error.message) from error
    if identity.scope is None:
        raise Refusal("FORBIDDEN", "The token is valid, and none of its words stands for a scope of this server.")
    if not _decent(identity.tenant) or not record.has_tenant(identity.tenant):
        raise Refusal("FORBIDDEN", "The token is valid, and names no tenant of this server; have its operator make it.")
    return Caller(identity.tenant, f"oidc:{identity.subject[:_LONGEST_SUBJECT]}", identity.scope, request_id)


def still_welcome(request: Request) -> bool:
    """
    Whether the key that the request came with may still be used, for answers that take long.

    Raises:
        Refusal: a token's words do not stand for anything any more, or its provider cannot be asked.
        StoreUnavailable: the record cannot.
    """
    found = _by_settings(request) or _by_record(request)
    return found is not None and found.tenant == request.state.caller.tenant


def _decent(name: str) -> bool:
    return name.isascii() and name.isprintable()


CallerDep = Annotated[Caller, Depends(_bearer)]


async def permit(scopes: SecurityScopes, caller: CallerDep) -> None:
    """Raises `Refusal` (403) when the caller's scope does not cover what the operation asks for."""
    for needed in scopes.scopes:
        if not caller.scope.covers(Scope(needed)):
            raise Refusal(
                "FORBIDDEN", f"That takes a key of scope `{needed}`, and this one is good for `{caller.scope}` only."
            )


may_read, may_submit, may_administer = (Security(permit, scopes=[scope]) for scope in Scope)
"""For `dependencies` of a router or a route."""
