"""
The way out to addresses that users name: what keeps a webhook from reaching into the network that the server stands in.

A name is resolved once, every address that it has is looked at, and the connection goes to one of those very addresses,
with the name kept for TLS and the Host header. So there is no second resolution that could say something else.
"""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import anyio
import httpx2

from search.errors import StillhouseError

SECONDS = 5.0
"""Until there is a status: resolving, connecting, TLS and sending."""
ANSWER_BYTES = 64 * 1024
"""That much of an answer is read, and the rest is left to who sent it."""
_BODY_SECONDS = 1.0
"""For that."""

_GLOBAL_UNICAST = IPv6Network("2000::/3")
_SPECIAL = (
    IPv4Network("192.0.0.0/24"),  # half of it is global to Pythons without the repair of CVE-2024-4032
    IPv6Network("2002::/16"),  # carries an IPv4 address
    IPv6Network("3fff::/20"),  # for documentation, and younger than some Pythons
)
_TRANSLATED = IPv6Network("64:ff9b::/96")
"""An IPv4 address in the last 32 bits, which a translator of the network connects to."""
_NAME = re.compile(r"[A-Za-z0-9._-]{0,252}[A-Za-z0-9_-]")
_NUMERIC = re.compile(r"(?:0[xX][0-9a-fA-F]*|[0-9]+)")
"""A last label by which resolvers take all of a name for an IPv4 address, as in `127.1` or `0x7f.1`."""

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host and port; raises `OSError`."""


class Forbidden(StillhouseError):
    """Nothing may be sent there."""

    code = "FORBIDDEN_ADDRESS"


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    """By lower-case name."""


class Gate:
    """Which addresses webhooks may have, by what can be told without asking anybody."""

    def __init__(self, hosts: Sequence[str], *, insecure: bool = False) -> None:
        self._hosts, self.insecure = [host.lower().strip("[]") for host in hosts], insecure

    @property
    def closed(self) -> bool:
        return not self._hosts

    def check(self, url: str) -> httpx2.URL:
        """
        The parsed address.

        Raises:
            Forbidden: it is no address of a receiver, or its host is not among those that the operator allows.
        """
        try:
            found = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError, ValueError):
            raise Forbidden("this is no address; write one such as https://hooks.example.org/stillhouse") from None
        host = found.raw_host.decode("ascii")
        if found.scheme != "https" and not (self.insecure and found.scheme == "http" and _is_loopback(host)):
            raise Forbidden("the address must begin with https://")
        literal = _is_literal(host)
        if not (literal or _NAME.fullmatch(host)) or found.userinfo or found.fragment or (found.port or 1) > 65535:
            raise Forbidden("the address must have a host, and neither a user nor a fragment")
        if not literal and _NUMERIC.fullmatch(host.rpartition(".")[2]):
            raise Forbidden(f"`{host[:64]}` is another way to write a number of an address; write a name")
        if not any(_matches(host, allowed) for allowed in self._hosts):
            raise Forbidden(
                f"`{host[:64]}` is not among the hosts in STILLHOUSE_WEBHOOK_HOSTS; have the operator add it there"
            )
        return found


async def resolve(host: str, port: int) -> Sequence[str]:
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Egress:
    """Sends to addresses that pass the gate and resolve to public ones only. Belongs to one event loop."""

    def __init__(
        self,
        gate: Gate,
        *,
        resolve: Resolve = resolve,
        trust: ssl.SSLContext | None = None,
        seconds: float = SECONDS,
    ) -> None:
        self._gate, self._resolve, self._seconds = gate, resolve, seconds
        # A bare transport knows no proxy of the environment, which would resolve the name once more by itself. No
        # connection is kept: it would serve every name that has its address, whatever its certificate says.
        self._transport = httpx2.AsyncHTTPTransport(
            verify=trust or True, limits=httpx2.Limits(max_keepalive_connections=0)
        )

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        """
        Sends one POST; an answer that leads elsewhere is an answer like any other.

        Raises:
            Forbidden: nothing may be sent there.
            TimeoutError: there was no status in time.
            httpx2.TransportError, OSError: the connection failed.
        """
        with anyio.fail_after(self._seconds):
            target = self._gate.check(url)
            request = httpx2.Request("POST", target, content=body, headers=headers)
            refused: Exception | None = None
            for address in await self._addresses(target):
                request.url = target.copy_with(host=address)
                request.extensions = {"sni_hostname": target.raw_host.decode("ascii")}
                try:
                    response = await self._transport.handle_async_request(request)
                except httpx2.ConnectError as error:
                    refused = error
                    continue  # nothing was sent yet
                return await _read(response)
            raise refused or OSError("the name has no address")

    async def close(self) -> None:
        await self._transport.aclose()

    async def _addresses(self, target: httpx2.URL) -> Sequence[str]:
        found = await self._resolve(
            target.raw_host.decode("ascii"), target.port or (443 if target.scheme == "https" else 80)
        )
        for address in found:
            if not self._gate.insecure and not is_public(address):
                # Which one it is is not said: the answer would tell users about names of the network inside.
                raise Forbidden(f"`{target.host[:64]}` has an address that is not public; nothing is sent there")
            if target.scheme != "https" and not _is_loopback(address):
                raise Forbidden("without TLS nothing is sent to other machines")
        return found


def is_public(text: str) -> bool:
    """Whether an address can be reached from anywhere, so that connecting to it gives nothing away."""
    try:
        address: Address = ip_address(text)
    except ValueError:
        return False
    if any(address in network for network in _SPECIAL):
        return False
    if isinstance(address, IPv4Address):
        return address.is_global and not address.is_multicast
    if address in _TRANSLATED:
        return is_public(str(IPv4Address(int(address) & 0xFFFF_FFFF)))
    # No multicast, mapped, compatible, local or unspecified address is among these.
    return address in _GLOBAL_UNICAST and address.is_global


async def _read(response: httpx2.Response) -> Answer:
    """
    What a receiver says is its status. Of the body as much is read as comes soon, so that a receiver which sends a
    little is not cut off in the middle.
    """
    seen = 0
    # Shielded: the status is here, and what it says does not change when the time is over meanwhile.
    with anyio.CancelScope(shield=True):
        try:
            with anyio.move_on_after(_BODY_SECONDS), suppress(httpx2.TransportError):
                async for piece in response.aiter_raw():
                    seen += len(piece)
                    if seen >= ANSWER_BYTES:
                        break
        finally:
            await response.aclose()
    return Answer(response.status_code, {name.lower(): value for name, value in response.headers.items()})


def _matches(host: str, allowed: str) -> bool:
    host = host.lower()
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def _is_literal(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
