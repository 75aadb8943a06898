"""
Bearer tokens of an identity provider (OpenID Connect): JWTs that are verified here, with the provider's published keys.

The provider says who somebody is, of which tenant, and what for; whether there is such a tenant is ours to say.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin

import httpx2
import jwt

from search.errors import StillhouseError
from service.store.values import Scope

logger = logging.getLogger("stillhouse.oidc")

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""With public keys only: whoever can verify a token must not be able to make one."""
_LEEWAY_SECONDS = 30
"""By which the clocks of provider and server may differ."""
_FRESH_SECONDS = 3600.0
_ASK_AGAIN_SECONDS = 30.0
"""Keys are asked for no more often, however many tokens name a key that nobody has published."""
_LARGEST_BYTES = 1 << 20
_LONGEST_TOKEN = 16 * 1024


class TokenRefused(StillhouseError):
    """The token is not one that this provider has made for this server, or is over."""

    code = "UNAUTHENTICATED"


class ProviderUnavailable(StillhouseError):
    """The provider's keys cannot be had now, and none are known."""

    code = "IDENTITY_UNAVAILABLE"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a token is of. `tenant` is empty and `scope` None where it does not say."""

    subject: str
    tenant: str
    scope: Scope | None


class Provider:
    """
    One issuer of tokens for `audience`. Its keys are found by discovery (OpenID Connect Discovery 1.0, section 4), kept
    for an hour and asked for again when a token names one that is not among them. Threads may share it.

    `scopes` says which words in the claim `scope_claim` stand for which scope.
    """

    def __init__(
        self,
        issuer: str,
        audience: str,
        *,
        tenant_claim: str,
        scope_claim: str,
        scopes: Mapping[str, Scope],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer, self._audience, self._clock = issuer, audience, clock
        self._tenant_claim, self._scope_claim, self._scopes = tenant_claim, scope_claim, dict(scopes)
        self._lock = threading.Lock()
        self._keys: dict[str, jwt.PyJWK] = {}
        self._asked_at: float | None = None
        self._fresh_until = 0.0

    def identify(self, token: str) -> Identity:
        """
        Raises:
            TokenRefused: it is not a valid token for us.
            ProviderUnavailable: that cannot be told now.
        """
        if len(token) > _LONGEST_TOKEN:
            raise TokenRefused("the token is too long")
        try:
            header = jwt.get_unverified_header(token)
            key = self._key(str(header.get("kid", "")))
            claims = jwt.decode(
                token,
                key,
                algorithms=[key.algorithm_name],
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY_SECONDS,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise TokenRefused(f"the token is refused ({type(error).__name__})") from error
        return Identity(str(claims["sub"]), _text(claims.get(self._tenant_claim)), self._widest(claims))

    def _widest(self, claims: Mapping[str, Any]) -> Scope | None:
        said = claims.get(self._scope_claim, ())
        words = said.split() if isinstance(said, str) else said if isinstance(said, list) else []
        meant = [self._scopes[word] for word in words if isinstance(word, str) and word in self._scopes]
        return max(meant, key=list(Scope).index, default=None)

    def _key(self, kid: str) -> jwt.PyJWK:
        known = self._keys.get(kid)
        if known is not None and self._clock() < self._fresh_until:
            return known
        # Of many requests one asks. Those whose key is only old go on with it; the others wait for the answer.
        if self._lock.acquire(blocking=known is None):
            try:
                self._ask(kid)
            finally:
                self._lock.release()
        if not self._keys:
            raise ProviderUnavailable("The identity provider's keys cannot be had at the moment; try again.")
        if (found := self._keys.get(kid)) is None:
            raise TokenRefused("the token is signed with a key that its issuer has not published")
        return found

    def _ask(self, kid: str) -> None:
        moment = self._clock()
        if kid in self._keys and moment < self._fresh_until:
            return
        if self._asked_at is not None and moment - self._asked_at < _ASK_AGAIN_SECONDS:
            return
        self._asked_at = moment
        try:
            self._keys = self._published()
            self._fresh_until = moment + _FRESH_SECONDS
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
            logger.warning("the keys of %s cannot be had: %s", self._issuer, type(error).__name__)

    def _published(self) -> dict[str, jwt.PyJWK]:
        with httpx2.Client(timeout=5.0, follow_redirects=False) as http:
            about = _document(http, urljoin(f"{self._issuer.rstrip('/')}/", ".well-known/openid-configuration"))
            if about["issuer"] != self._issuer:
                raise ValueError("the issuer that answers is another one")
            address = str(about["jwks_uri"])
            if address.startswith("http://") and not self._issuer.startswith("http://"):
                raise ValueError("keys over plain HTTP can be anybody's")
            found = jwt.PyJWKSet.from_dict(_document(http, address))
        return {
            key.key_id: key
            for key in found.keys
            if key.key_id and key.public_key_use in (None, "sig") and key.algorithm_name in ALGORITHMS
        }


def _document(http: httpx2.Client, address: str) -> dict[str, Any]:
    with http.stream("GET", address) as answer:
        answer.raise_for_status()
        data = b""
        for piece in answer.iter_bytes():
            data += piece
            if len(data) > _LARGEST_BYTES:
                raise ValueError("the provider's answer is too large")
    found = json.loads(data)
    if not isinstance(found, dict):
        raise TypeError("the provider's answer is no object")
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
