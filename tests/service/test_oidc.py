"""Tokens of an identity provider: one that we play ourselves, with keys made here."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm
from sqlalchemy import Engine
from starlette.testclient import TestClient

from search.errors import FieldError
from service.app import create_app
from service.oidc import Provider, ProviderUnavailable, TokenRefused
from service.settings import InvalidSettings, Settings, read_settings
from service.store.accounts import SqlTenants
from service.store.engine import latest_revision
from service.store.record import SqlRecord
from service.store.values import Caller, Scope
from tests.service.served import SPEC, client_of, in_threads
from tests.service.test_tenancy import Willing
from workers.memory import MemoryArtifacts

pytestmark = pytest.mark.timeout(30)

AUDIENCE = "stillhouse"
RSA = {name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("one", "two")}
EC = ec.generate_private_key(ec.SECP256R1())
PUBLIC = RSA["one"].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def published(name: str) -> dict[str, Any]:
    return {**RSAAlgorithm.to_jwk(RSA[name].public_key(), as_dict=True), "kid": name, "use": "sig", "alg": "RS256"}


class Issuer:
    """A provider on this machine. `asked` counts how often its keys were fetched; `answers` is what it says."""

    def __init__(self, server: HTTPServer) -> None:
        self.url = f"http://127.0.0.1:{server.server_port}"
        self.asked, self.up = 0, True
        self.keys = [published("one"), {**ECAlgorithm.to_jwk(EC.public_key(), as_dict=True), "kid": "ec"}]
        self.about = {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}

    def token(self, key: Any = RSA["one"], kid: str = "one", algorithm: str = "RS256", **claims: Any) -> str:
        usual = {"iss": self.url, "aud": AUDIENCE, "sub": "sam", "exp": time.time() + 300, "tenant": "vision"}
        whole = usual | {"scope": "openid stillhouse:submit"} | claims
        kept = {name: value for name, value in whole.items() if value is not None}
        return jwt.encode(kept, key, algorithm=algorithm, headers={"kid": kid})


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages = {"/.well-known/openid-configuration": played.about, "/keys": {"keys": played.keys}}
            played.asked += self.path == "/keys"
            self.send_response(200 if played.up and self.path in pages else 500)
            self.end_headers()
            self.wfile.write(json.dumps(pages.get(self.path, {})).encode())

        def log_message(self, *_: object) -> None:
            """Not on the screen."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        played = Issuer(server)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield played
        server.shutdown()
        thread.join()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(issuer: Issuer, clock: Clock) -> Provider:
    scopes = {f"stillhouse:{scope}": scope for scope in Scope}
    return Provider(issuer.url, AUDIENCE, tenant_claim="tenant", scope_claim="scope", scopes=scopes, clock=clock)


def test_a_token_says_who_of_whom_and_what_for(issuer: Issuer, provider: Provider) -> None:
    found = provider.identify(issuer.token())
    assert (found.subject, found.tenant, found.scope) == ("sam", "vision", Scope.SUBMIT)
    assert provider.identify(issuer.token(EC, "ec", "ES256")).subject == "sam"
    for said, meant in (
        ("stillhouse:read stillhouse:admin", Scope.ADMIN),
        (["stillhouse:read", 7, None], Scope.READ),
        ("openid", None),
        ({"stillhouse:admin": True}, None),
        (None, None),
    ):
        assert provider.identify(issuer.token(scope=said)).scope is meant
    assert provider.identify(issuer.token(tenant=["vision"])).tenant == ""
    assert issuer.asked == 1


def unsigned(issuer: Issuer) -> str:
    return jwt.encode(jwt.decode(issuer.token(), options={"verify_signature": False}), None, algorithm="none")


def signed_with_the_public_key(issuer: Issuer) -> str:
    """What a verifier takes that lets the token choose the algorithm: HMAC with the public key as the secret."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    claims = issuer.token().split(".")[1]
    head = part(json.dumps({"alg": "HS256", "kid": "one", "typ": "JWT"}).encode())
    return f"{head}.{claims}.{part(hmac.digest(PUBLIC, f'{head}.{claims}'.encode(), hashlib.sha256))}"


def changed(issuer: Issuer) -> str:
    head, _, seal = issuer.token().split(".")
    return f"{head}.{issuer.token(tenant='another').split('.')[1]}.{seal}"


@pytest.mark.parametrize(
    "forge",
    [
        unsigned,
        signed_with_the_public_key,
        changed,
        lambda issuer: issuer.token(RSA["two"]),
        lambda issuer: issuer.token(kid="nobodys"),
        lambda issuer: issuer.token(EC, "one", "ES256"),
        lambda issuer: issuer.token(algorithm="PS256"),
        lambda issuer: issuer.token(exp=time.time() - 60),
        lambda issuer: issuer.token(nbf=time.time() + 600),
        lambda issuer: issuer.token(exp=None),
        lambda issuer: issuer.token(sub=None),
        lambda issuer: issuer.token(aud="another"),
        lambda issuer: issuer.token(aud=None),
        lambda issuer: issuer.token(iss="https://another.example"),
        lambda issuer: issuer.token(filler="x" * 20_000),
        lambda issuer: "a.b.c",
        lambda issuer: "..",
        lambda issuer: "é.é.é",
    ],
)
def test_what_is_no_token_for_us_is_refused(issuer: Issuer, provider: Provider, forge: Any) -> None:
    with pytest.raises(TokenRefused):
        provider.identify(forge(issuer))


def test_new_keys_are_found_and_old_ones_forgotten(issuer: Issuer, provider: Provider, clock: Clock) -> None:
    old, new = issuer.token(), issuer.token(RSA["two"], "two")
    provider.identify(old)
    issuer.keys = [published("two")]
    with pytest.raises(TokenRefused):
        provider.identify(new)  # asked a moment ago
    clock.now += 31
    assert provider.identify(new).subject == "sam"
    with pytest.raises(TokenRefused):
        provider.identify(old)
    assert issuer.asked == 2


def test_tokens_with_keys_of_nobody_do_not_make_us_ask_each_time(issuer: Issuer, provider: Provider) -> None:
    for number in range(20):
        with pytest.raises(TokenRefused):
            provider.identify(issuer.token(kid=f"made-up-{number}"))
    assert issuer.asked == 1


def test_a_provider_that_is_away(issuer: Issuer, provider: Provider, clock: Clock) -> None:
    issuer.up = False
    for _ in range(2):
        with pytest.raises(ProviderUnavailable):
            provider.identify(issuer.token())
    issuer.up = True
    clock.now += 31
    provider.identify(issuer.token())
    issuer.up = False
    clock.now += 4000
    assert provider.identify(issuer.token()).subject == "sam", "its keys of an hour ago are better than none"


def test_of_many_that_come_at_once_one_asks(issuer: Issuer, provider: Provider) -> None:
    token = issuer.token()
    assert {found.subject for found in in_threads(16, lambda _: provider.identify(token))} == {"sam"}
    assert issuer.asked == 1


@pytest.mark.parametrize("issuing", ["http://127.0.0.1:1/another", "https://another.example"])
def test_an_issuer_that_calls_itself_otherwise_is_not_believed(
    issuer: Issuer, provider: Provider, issuing: str
) -> None:
    issuer.about["issuer"] = issuing
    with pytest.raises(ProviderUnavailable):
        provider.identify(issuer.token())
    assert issuer.asked == 0


def test_a_published_secret_is_no_key(issuer: Issuer, provider: Provider) -> None:
    secret = b"thirty-two bytes that everybody knows"
    shared = base64.urlsafe_b64encode(secret).decode().rstrip("=")
    issuer.keys = [{"kty": "oct", "kid": "one", "alg": "HS256", "k": shared}, published("two")]
    with pytest.raises(TokenRefused):
        provider.identify(issuer.token(secret, "one", "HS256"))


class TestOverHttp:
    @pytest.fixture
    def http(self, issuer: Issuer, sqlite: Engine, tmp_path: Path) -> Iterator[TestClient]:
        SqlTenants(sqlite, "shell").create("vision")
        settings = Settings(home=tmp_path, oidc_issuer=issuer.url, oidc_audience=AUDIENCE)
        app = create_app(settings, SqlRecord(sqlite), MemoryArtifacts(), Willing(), schema_version=latest_revision())
        with client_of(app) as http:
            yield http

    def ask(self, http: TestClient, token: str, method: str = "GET", path: str = "/v1/usage") -> Any:
        body = SPEC if method == "POST" else None
        return http.request(method, path, json=body, headers={"Authorization": f"Bearer {token}"})

    def test_a_token_is_as_good_as_a_key(self, issuer: Issuer, http: TestClient, sqlite: Engine) -> None:
        assert self.ask(http, issuer.token()).json()["tenant"] == "vision"
        assert self.ask(http, issuer.token(), "POST", "/v1/jobs").status_code == 201
        reader = issuer.token(scope="stillhouse:read")
        assert self.ask(http, reader, "POST", "/v1/jobs").json()["code"] == "FORBIDDEN"
        admin = issuer.token(scope="stillhouse:admin", sub="eve")
        [entry, _] = self.ask(http, admin, path="/v1/audit").json()["entries"]
        assert (entry["actor"], entry["action"]) == ("oidc:sam", "jobs.create")
        key, secret = SqlRecord(sqlite).account(Caller("vision", "shell", Scope.ADMIN)).create_key("k", Scope.READ)
        assert self.ask(http, secret).status_code == 200, f"and keys such as {key.id} are still taken"

    def test_what_is_refused_and_how(self, issuer: Issuer, http: TestClient) -> None:
        assert self.ask(http, issuer.token(aud="another")).status_code == 401
        for token in (issuer.token(scope="openid"), *(issuer.token(tenant=name) for name in ("nobody", None, "a\0b"))):
            answer = self.ask(http, token)
            assert (answer.status_code, answer.json()["code"]) == (403, "FORBIDDEN")

    def test_a_provider_that_is_away_is_no_mistake_of_the_caller(self, issuer: Issuer, http: TestClient) -> None:
        issuer.up = False
        answer = self.ask(http, issuer.token())
        assert (answer.status_code, answer.json()["code"]) == (503, "IDENTITY_UNAVAILABLE")
        assert int(answer.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"oidc_issuer": "http://login.example", "oidc_audience": "x"}, "/oidc_issuer"),
        ({"oidc_issuer": "login.example", "oidc_audience": "x"}, "/oidc_issuer"),
        ({"oidc_issuer": "https://login.example"}, "/oidc_audience"),
    ],
)
def test_an_issuer_that_anybody_could_be_is_refused(given: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidSettings) as caught:
        read_settings(**given).check_binding()
    [error] = caught.value.errors
    assert isinstance(error, FieldError)
    assert error.pointer == field


def test_words_for_scopes_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_OIDC_SCOPES", "viewer=read, https://x.example/a=b=submit")
    assert read_settings().oidc_scopes == {"viewer": Scope.READ, "https://x.example/a=b": Scope.SUBMIT}
    monkeypatch.setenv("STILLHOUSE_OIDC_SCOPES", "viewer=root")
    with pytest.raises(InvalidSettings, match="STILLHOUSE_OIDC_SCOPES"):
        read_settings()
