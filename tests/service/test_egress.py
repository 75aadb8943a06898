"""The way out leads to public addresses of allowed hosts only, and never for long."""

from __future__ import annotations

import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import anyio
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from service import egress
from service.egress import Answer, Egress, Forbidden, Gate, is_public
from tests.service.receiver import answer, drip, receiving, silence

PUBLIC = ["93.184.216.34", "8.8.8.8", "2606:2800:220:1:248:1893:25c8:1946", "64:ff9b::808:808"]
PRIVATE = [
    *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),  # noqa: S104
    *("100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.250", "255.255.255.255"),
    *("240.0.0.1", "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "fe80::1", "fe80::1%eth0"),
    *("fd00::", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "2002:7f00:1::", "2001::1", "100::1", "3fff::1"),
    *("64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1", "", "localhost"),
]
DISGUISED = ["127.1", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "0", "127.0.0.1.", "1.2.3.0x4"]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not(address: str) -> None:
    assert not is_public(address)


@given(st.ip_addresses())
def test_nothing_that_python_knows_to_be_special_is_public(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    special = address.is_private or address.is_multicast or address.is_loopback or address.is_link_local
    if special or address.is_unspecified:
        assert not is_public(str(address))


def sent(way: Egress, url: str, body: bytes = b"{}") -> Answer:
    async def send() -> Answer:
        try:
            return await way.post(url, body, {"content-type": "application/json"})
        finally:
            await way.close()

    return anyio.run(send)


def at(*addresses: str) -> egress.Resolve:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return addresses

    return resolve


@pytest.fixture
def listener() -> socket.socket:
    """Nobody comes here."""
    found = socket.create_server(("127.0.0.1", 0))
    found.setblocking(False)
    return found


@pytest.mark.parametrize(
    "host",
    [*DISGUISED, "127.0.0.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "[::]", "localhost"],  # noqa: S104
)
def test_this_machine_is_not_reached_however_it_is_written(host: str, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    with listener:
        with pytest.raises(Forbidden):
            sent(Egress(Gate([host])), f"https://{host}:{port}/")
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_with_one_private_address_is_refused_whole(address: str) -> None:
    for addresses in ([address], [PUBLIC[0], address], [address, PUBLIC[2]]):
        with pytest.raises(Forbidden, match="not public"):
            sent(Egress(Gate(["*.example.org"]), resolve=at(*addresses)), "https://hooks.example.org/")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://hooks.example.org/", "https"),
        ("ftp://hooks.example.org/", "https"),
        ("file:///etc/passwd", "https"),
        ("hooks.example.org", "https"),
        ("https://", "host"),
        ("https://user:pass@hooks.example.org/", "user"),
        ("https://hooks.example.org/#here", "fragment"),
        ("https://hooks.example.org:99999/", "address"),
        ("https://example.org/", "not among"),
        ("https://hooks.example.org.evil.test/", "not among"),
        ("https://evilexample.org/", "not among"),
        ("https://hooks.example.org%00.evil.test/", "host"),
        ("https://hooks.example.org\\@evil.test/", "address"),
        ("https://hooks.example.org@evil.test/", "user"),
        ("https://ho oks.example.org/", "host"),
        ("https://[hooks.example.org/", "address"),
    ],
)
def test_addresses_that_are_none_or_not_allowed(url: str, said: str) -> None:
    with pytest.raises(Forbidden, match=said):
        Gate(["*.example.org"]).check(url)


def test_hosts_are_allowed_by_name_or_with_all_below() -> None:
    gate = Gate(["*.example.org", "Hooks.Test", "xn--mnchen-3ya.de", "[2606:4700::1]"])
    for host in ("a.example.org", "A.B.EXAMPLE.ORG:8443", "hooks.test", "münchen.de", "[2606:4700::1]"):
        assert gate.check(f"https://{host}/path?query=1")
    assert Gate([]).closed


def test_a_name_is_resolved_once_and_what_was_checked_is_what_is_connected_to() -> None:
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["127.0.0.2"]

    with receiving() as checked:
        port = int(checked.url.split(":")[2].split("/")[0])
        with receiving(host="127.0.0.2", port=port) as other:
            gate = Gate(["localhost"], insecure=True)
            assert sent(Egress(gate, resolve=rebinding), f"http://localhost:{port}/x").status == 204
    assert (asked, len(checked.letters), len(other.letters)) == (["localhost"], 1, 0)
    assert checked.letters[0][0]["host"] == f"localhost:{port}"


def certificate(folder: Path, name: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a receiver called `name`, and for who trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    text = made.public_bytes(pem)
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file = folder / "receiver.pem"
    file.write_bytes(text + secret)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(file)
    return serving, ssl.create_default_context(cadata=text.decode())


def test_tls_asks_for_the_name_and_believes_no_other(tmp_path: Path) -> None:
    serving, trusting = certificate(tmp_path, "hooks.example.org")
    gate = Gate(["*.example.org"], insecure=True)
    with receiving(tls=serving) as receiver:
        port = int(receiver.url.split(":")[2].split("/")[0])
        way = Egress(gate, resolve=at("127.0.0.1"), trust=trusting)
        assert sent(way, f"https://hooks.example.org:{port}/").status == 204
        assert receiver.names == ["hooks.example.org"]
        assert receiver.letters[0][0]["host"] == f"hooks.example.org:{port}"
        with pytest.raises(httpx2.TransportError):
            sent(Egress(gate, resolve=at("127.0.0.1"), trust=trusting), f"https://other.example.org:{port}/")
        with pytest.raises(httpx2.TransportError):
            sent(Egress(gate, resolve=at("127.0.0.1")), f"https://hooks.example.org:{port}/")
        assert len(receiver.letters) == 1


def test_without_tls_nothing_leaves_the_machine() -> None:
    with pytest.raises(Forbidden, match="without TLS"):
        sent(Egress(Gate(["localhost"], insecure=True), resolve=at("10.1.2.3")), "http://localhost:1/")
    with pytest.raises(Forbidden, match="https"):
        Gate(["hooks.example.org"], insecure=True).check("http://hooks.example.org/")


def way_in() -> Egress:
    return Egress(Gate(["127.0.0.1"], insecure=True), seconds=0.5)


def test_an_answer_that_leads_elsewhere_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with (
        receiving() as inside,
        receiving(answer(302, Location=inside.url), answer(307, Location=inside.url)) as receiver,
    ):
        assert [sent(way_in(), receiver.url).status for _ in range(2)] == [302, 307]
        assert (len(receiver.letters), len(inside.letters)) == (2, 0)


@pytest.mark.parametrize(
    "doing",
    [silence(1.5), drip(b"HTTP/1.1 200 OK\r\n", b"X-More: 1\r\n", 1.5), drip(b"", b"H", 1.5)],
    ids=["nothing", "headers without end", "a status without end"],
)
def test_nobody_is_waited_for_for_long(doing: object) -> None:
    with receiving(doing) as receiver:  # type: ignore[arg-type]
        began = time.monotonic()
        with pytest.raises((TimeoutError, httpx2.TransportError)):
            sent(way_in(), receiver.url)
        assert time.monotonic() - began < 1.2


def test_a_body_without_end_takes_nothing_from_its_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "_BODY_SECONDS", 0.2)
    with receiving(drip(b"HTTP/1.1 200 OK\r\n\r\n", b".", 1.5)) as receiver:
        began = time.monotonic()
        assert sent(way_in(), receiver.url).status == 200
        assert time.monotonic() - began < 0.6


def test_a_status_that_comes_late_counts_though_its_body_does_not_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "_BODY_SECONDS", 0.4)

    def late(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.3)
        drip(b"HTTP/1.1 200 OK\r\n\r\n", b".", 1.5)(handler)

    with receiving(late) as receiver:
        assert sent(way_in(), receiver.url).status == 200


def test_of_a_large_body_little_is_read() -> None:
    written: list[int] = []
    ended = threading.Event()

    def flood(handler: object) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")  # type: ignore[attr-defined]
        try:
            for _ in range(1000):
                handler.wfile.write(b"x" * 100_000)  # type: ignore[attr-defined]
                written.append(100_000)
        finally:
            ended.set()

    with receiving(flood) as receiver:
        assert sent(way_in(), receiver.url).status == 200
        assert ended.wait(3)
    assert sum(written) < 20_000_000, "what fits into the buffers between us, and no more"


def test_a_receiver_that_is_not_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(httpx2.ConnectError):
        sent(way_in(), f"http://127.0.0.1:{port}/")


def test_of_several_addresses_the_next_is_tried() -> None:
    with receiving() as receiver:
        port = int(receiver.url.split(":")[2].split("/")[0])
        way = Egress(Gate(["localhost"], insecure=True), resolve=at("127.0.0.3", "127.0.0.1"))
        assert sent(way, f"http://localhost:{port}/").status == 204
