"""Signatures of letters: those of the specification, and nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.signing import Forged, headers_of, new_secret, verify

# The example of the specification, whose signature is public.
SECRET, ID, AT = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
HEADERS = {"webhook-id": ID, "webhook-timestamp": str(AT), "webhook-signature": SIGNATURE}


def test_a_signature_is_that_of_the_specification() -> None:
    by_hand = hmac.new(base64.b64decode(SECRET[6:]), f"{ID}.{AT}.".encode() + BODY, hashlib.sha256).digest()
    assert f"v1,{base64.b64encode(by_hand).decode()}" == SIGNATURE
    assert headers_of(ID, AT, BODY, SECRET) == HEADERS


def test_a_secret_is_random_and_long_enough() -> None:
    secrets = {new_secret() for _ in range(20)}
    assert len(secrets) == 20
    assert all(len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) >= 24 for secret in secrets)


@pytest.mark.parametrize("away", [-300, 0, 300])
def test_what_was_signed_just_now_is_believed(away: int) -> None:
    assert verify(BODY, HEADERS, SECRET, now=AT + away) == {"test": 2432232314}
    assert verify(BODY.decode(), {name.title(): value for name, value in HEADERS.items()}, SECRET, now=AT)
    rotated = {**HEADERS, "webhook-signature": f"v1,{'A' * 43}= {SIGNATURE} v1a,x"}
    assert verify(BODY, rotated, SECRET, now=AT), "one of several is enough, while secrets change"


@pytest.mark.parametrize(
    ("changes", "body", "secret", "now"),
    [
        ({}, BODY, SECRET, AT + 301),
        ({}, BODY, SECRET, AT - 301),
        ({}, BODY + b" ", SECRET, AT),
        ({}, BODY, "whsec_" + "A" * 32, AT),
        ({"webhook-id": "msg_other"}, BODY, SECRET, AT),
        ({"webhook-timestamp": str(AT + 1)}, BODY, SECRET, AT),
        ({"webhook-timestamp": "now"}, BODY, SECRET, AT),
        ({"webhook-signature": ""}, BODY, SECRET, AT),
        ({"webhook-signature": SIGNATURE.removeprefix("v1,")}, BODY, SECRET, AT),
        ({"webhook-signature": SIGNATURE.replace("v1,", "v2,")}, BODY, SECRET, AT),
        ({"webhook-signature": "v1,\udcff\xff"}, BODY, SECRET, AT),
    ],
)
def test_what_was_not_is_forged(changes: dict[str, str], body: bytes, secret: str, now: float) -> None:
    with pytest.raises(Forged):
        verify(body, HEADERS | changes, secret, now=now)


@pytest.mark.parametrize("missing", HEADERS)
def test_each_header_is_needed(missing: str) -> None:
    with pytest.raises(Forged, match=missing):
        verify(BODY, {name: value for name, value in HEADERS.items() if name != missing}, SECRET, now=AT)


def test_a_secret_that_is_none_is_not_taken_for_an_empty_one() -> None:
    with pytest.raises(ValueError, match="as it was shown"):
        verify(BODY, HEADERS, "whsec_not base64", now=AT)


@given(st.dictionaries(st.text(), st.text()), st.integers(0, 2**33))
def test_what_was_signed_is_what_comes_out(data: dict[str, str], at: int) -> None:
    body, secret = json.dumps(data).encode(), new_secret()
    assert verify(body, headers_of("delivery_1", at, body, secret), secret, now=at) == data
