"""
Signatures of what is sent to webhooks, as Standard Webhooks has them (standardwebhooks.com): HMAC-SHA256 of
`id.timestamp.body`. Needs nothing but the standard library, so that a receiver may import it:

    from service.signing import Forged, verify

    event = verify(body, headers, secret)      # raises Forged
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

SECRET_PREFIX = "whsec_"  # noqa: S105 - what every secret begins with
WINDOW_SECONDS = 300.0
_SECRET_BYTES = 32


class Forged(ValueError):
    """It was not sent by who knows the secret, or not just now. Nothing in it is to be believed."""


def new_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def headers_of(letter_id: str, timestamp: int, body: bytes, secret: str) -> dict[str, str]:
    """What goes with `body`. `timestamp` is that of the attempt, in seconds since 1970."""
    return {
        "webhook-id": letter_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": _signature(letter_id, str(timestamp), body, secret),
    }


def verify(
    payload: bytes | str,
    headers: Mapping[str, str],
    secret: str,
    *,
    window_seconds: float = WINDOW_SECONDS,
    now: float | None = None,
) -> Any:
    """
    The decoded body of what was received. `payload` is the body as it came, byte for byte; `headers` may be in any
    case. Of a letter that comes twice `webhook-id` is the same: keep those of the last day and pass over known ones.

    Raises:
        Forged: a header is missing, no signature is by `secret` (which begins with `whsec_`), or it was signed more
            than `window_seconds` before or after `now` (seconds since 1970; this machine's clock by default).
    """
    body = payload.encode() if isinstance(payload, str) else payload
    given = {name.lower(): value for name, value in headers.items()}
    try:
        letter_id, timestamp, signatures = (given[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
        signed_at = int(timestamp)
    except KeyError as error:
        raise Forged(f"the header {error} is missing") from None
    except ValueError:
        raise Forged("webhook-timestamp is not a number of seconds") from None
    if abs((time.time() if now is None else now) - signed_at) > window_seconds:
        raise Forged("it was signed too long ago, or the clocks of sender and receiver differ")
    expected = _signature(letter_id, timestamp, body, secret).encode()
    if not any(hmac.compare_digest(expected, found.encode(errors="replace")) for found in signatures.split()):
        raise Forged("no signature of it is by this secret")
    return json.loads(body)


def _signature(letter_id: str, timestamp: str, body: bytes, secret: str) -> str:
    try:
        key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("a secret of a webhook is `whsec_` and base64; give it as it was shown") from None
    signed = b".".join((letter_id.encode(), timestamp.encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
