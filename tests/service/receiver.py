"""A receiver of webhooks: a real server, in threads, that does what it is told with what it gets."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Doing = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Receiver:
    """`script` says what is done with the next letters; 204 when it has nothing more to say."""

    url: str = ""
    script: deque[Doing] = field(default_factory=deque)
    letters: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    """Headers by lower-case name, and body."""
    names: list[str] = field(default_factory=list)
    """As TLS was asked for."""
    sent: int = 0

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.letters]

    def wait(self, count: int, seconds: float = 8.0) -> None:
        wait_until(lambda: len(self.letters) >= count, seconds)


def wait_until(true: Callable[[], bool], seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.01)


def answer(status: int, body: bytes = b"", **headers: str) -> Doing:
    def do(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return do


def silence(seconds: float) -> Doing:
    return lambda handler: time.sleep(seconds)


def drip(first: bytes, piece: bytes, seconds: float) -> Doing:
    """A byte now and then, so that no single read takes long."""

    def do(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(first)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            handler.wfile.write(piece)
            time.sleep(0.05)

    return do


@contextmanager
def receiving(
    *script: Doing, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[Receiver]:
    found = Receiver(script=deque(script))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.letters.append(({name.lower(): value for name, value in self.headers.items()}, body))
            with contextlib.suppress(OSError):
                (found.script.popleft() if found.script else answer(204))(self)

        def log_message(self, *_: Any) -> None:
            """The letters are told by `letters`."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: Any) -> None:
            """Senders leave when they have heard enough, and some do not trust us."""

    with Server((host, port), Handler) as server:
        if tls is not None:
            tls.sni_callback = lambda _socket, name, _context: found.names.append(name)
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        found.url = f"http{'s' if tls else ''}://{host}:{server.server_address[1]}/letters"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()


def answers_at(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])
