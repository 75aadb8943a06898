"""Who may call: whoever has the key, when the operator has set one."""

from __future__ import annotations

import hmac
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.problems import Refusal

_bearer = HTTPBearer(
    scheme_name="apiKey",
    description="The key of this server. One that listens on loopback only may be without.",
    auto_error=False,
)


async def require_key(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]
) -> None:
    """Raises `Refusal` (401) when a key is set and the request does not bear it."""
    key = request.app.state.settings.api_key
    if key is None:
        return
    given = credentials.credentials if credentials is not None else ""
    if not hmac.compare_digest(given.encode(), key.get_secret_value().encode()):
        raise Refusal(
            "UNAUTHENTICATED",
            "Send the key of this server as `Authorization: Bearer <key>`; its operator has set one.",
            headers={"WWW-Authenticate": 'Bearer realm="stillhouse"'},
        )
