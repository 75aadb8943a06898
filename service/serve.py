"""The server's processes: everything in one, or the API and the dispatcher each by itself."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from search.errors import FieldError
from search.files import Files
from service import latchkey
from service.app import create_app
from service.checker import CachedChecker, ChildChecker, warm
from service.drive import Launcher
from service.egress import Egress, Gate
from service.metrics import Drivers, dispatcher_registry, publish
from service.postman import Postman
from service.settings import PREFIX, InvalidSettings, Settings
from service.store import engine as database
from service.store.ledger import SqlLedger
from service.store.outbox import SqlOutbox
from service.store.record import SqlRecord
from service.store.values import DEFAULT, Caller, Scope
from service.traces import open_traces
from service.turnstile import CONNECTIONS, HEAD_BYTES, Connection
from workers.artifacts import FolderArtifacts
from workers.dispatcher import Dispatcher

logger = logging.getLogger("stillhouse.serve")

GRACE_SECONDS = 20
"""How long requests may take to finish after the server was told to end."""
UNREAD_SECONDS = 60
"""A connection whose client takes nothing of what was sent to it for so long is closed, and what it held is freed."""
_GET_UP_SECONDS = 5.0

OnReady = Callable[[str], None]
OnKey = Callable[[str], None]


def migrate(settings: Settings) -> None:
    """
    Brings the database to the tables that this version works with.

    Raises:
        StoreUnavailable: it cannot be reached, or a newer version has been there.
    """
    database.migrate(database.connect(settings.database_url))


def serve(settings: Settings, on_ready: OnReady | None = None, on_key: OnKey | None = None) -> None:
    """
    API and dispatcher in one process, until SIGTERM or Ctrl+C. `on_ready` is given the address once it answers, and
    `on_key` the key for this machine's clients when one had to be made (`service.latchkey`).

    A SQLite database is migrated first; another one must have been (`migrate`). Jobs under way go on without us.

    Raises:
        UserError: it may not listen there, the port is taken, another server uses the same home, or the tables are of
            an earlier version.
        StoreUnavailable: the database cannot be reached, or a newer version has used the SQLite file.
    """
    _check_binding(settings)
    settings.check_cluster()
    with _alone(settings):
        record, ledger, outbox = _opened(settings)
        _lay_key(settings, record, on_key)
        draining, dispatcher = threading.Event(), _dispatcher(settings, ledger)
        with _sending(settings, outbox, draining), _dispatching(dispatcher, draining):
            _answer_requests(settings, record, draining, on_ready, dispatcher)


def serve_api(settings: Settings, on_ready: OnReady | None = None, on_key: OnKey | None = None) -> None:
    """The API alone; any number of these may share one Postgres. Raises as `serve` does."""
    _check_binding(settings)
    with _alone(settings):
        record, _, _ = _opened(settings)
        _lay_key(settings, record, on_key)
        _answer_requests(settings, record, threading.Event(), on_ready)


def serve_dispatcher(settings: Settings) -> None:
    """
    The dispatcher alone, which sends to webhooks too, until SIGTERM or Ctrl+C; any number may share one Postgres.
    Raises as `serve` does.
    """
    settings.check_cluster()
    stop = threading.Event()
    with _alone(settings), _signals(lambda: stop.set()):
        _, ledger, outbox = _opened(settings)
        dispatcher = _dispatcher(settings, ledger)
        publish(settings, dispatcher_registry(dispatcher))
        with _sending(settings, outbox, stop):
            dispatcher.run(stop)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """SQLite serves one process; with Postgres a lease decides, and nobody needs to be alone."""
    with database.sole(settings.home) if settings.embedded else nullcontext():
        yield


def _check_binding(settings: Settings) -> None:
    """Before anything is made: whoever may be reached from elsewhere has to have a key on record, or be given one."""
    open_to_others = not settings.loopback and settings.api_key is None
    settings.check_binding(keys=open_to_others and _has_keys(settings))


def _has_keys(settings: Settings) -> bool:
    if settings.embedded and not Path(settings.database_url.removeprefix("sqlite:///")).exists():
        return False
    return SqlRecord(database.connect(settings.database_url)).has_keys()


def _lay_key(settings: Settings, record: SqlRecord, on_key: OnKey | None) -> None:
    """Sees to it that clients on this machine find a key in the home, where the record is a file there too."""
    if settings.auth == "off" or settings.api_key is not None or not (settings.embedded and settings.loopback):
        return
    if record.holder(latchkey.kept_in(settings.home)) is None:
        account = record.account(Caller(DEFAULT, STARTING, Scope.ADMIN))
        _, secret = account.create_key(latchkey.NAME, Scope.ADMIN)
        latchkey.keep_in(settings.home, secret)
        if on_key is not None:
            on_key(secret)


STARTING = "server"
"""The actor of what a server does by itself."""


def _opened(settings: Settings) -> tuple[SqlRecord, SqlLedger, SqlOutbox]:
    """All sides of the record, over tables that suit this version."""
    engine = database.ready(settings.database_url, shown=settings.database, pool=settings.database_pool)
    return SqlRecord(engine), SqlLedger(engine), SqlOutbox(engine)


def _dispatcher(settings: Settings, ledger: SqlLedger) -> Dispatcher:
    return Dispatcher(
        ledger,
        Launcher(settings),
        owner=f"{socket.gethostname()}:{os.getpid()}",
        slots=settings.concurrent_jobs,
        lease_seconds=settings.lease_seconds,
    )


@contextmanager
def _dispatching(dispatcher: Dispatcher, draining: threading.Event) -> Iterator[None]:
    """A dispatcher in a thread; nothing is claimed any more once `draining` is set."""

    def run() -> None:
        try:
            dispatcher.run(draining)
        except Exception:
            # A server that takes jobs and starts none is worse than one that is seen to be down.
            logger.critical("the dispatcher died; the server ends", exc_info=True)
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=run, name="dispatcher")
    thread.start()
    try:
        yield
    finally:
        draining.set()
        thread.join()


@contextmanager
def _sending(settings: Settings, outbox: SqlOutbox, stop: threading.Event) -> Iterator[None]:
    """
    A postman in a thread, until `stop` is set. There is one even where no host is allowed: what was put down for
    webhooks of before is refused and comes to its end, instead of waiting for ever.
    """
    gate = Gate(settings.webhook_hosts, insecure=settings.webhook_insecure)

    def run() -> None:
        while not stop.is_set():
            try:
                Postman(outbox, lambda: Egress(gate)).run(stop)
            except Exception:
                logger.exception("the postman fell, and gets up again")
                stop.wait(_GET_UP_SECONDS)

    thread = threading.Thread(target=run, name="postman")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _answer_requests(
    settings: Settings,
    record: SqlRecord,
    draining: threading.Event,
    on_ready: OnReady | None,
    dispatcher: Dispatcher | None = None,
) -> None:
    with _listening(settings) as listener, open_traces(settings, "api") or nullcontext() as traces:
        files = Files(cache=settings.home / "cache", roots=settings.data_roots)
        child = ChildChecker(files, limit_seconds=settings.check_seconds, artifacts=settings.artifacts)
        checker = CachedChecker(child)
        app = create_app(
            settings,
            record,
            FolderArtifacts(settings.artifacts),
            checker,
            schema_version=database.latest_revision(),
            draining=draining,
            traces=traces,
        )
        if dispatcher is not None:
            app.state.metrics.registry.register(Drivers(dispatcher))
        publish(settings, app.state.metrics.registry)
        server = _Server(
            listening_to(app, settings.request_seconds),
            draining,
            lambda: on_ready(_address(settings, listener)) if on_ready is not None else None,
        )
        warm(checker)
        # What is loaded by now stays. To look through all of it for garbage every few seconds holds up every answer; to
        # look again after each 700 objects, those that list many jobs.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        with _signals(server.end):
            server.run(sockets=[listener])


def listening_to(app: FastAPI, request_seconds: float, connections: int = CONNECTIONS) -> uvicorn.Config:
    """How connections are answered, and how many are kept."""
    connection: Any = partial(Connection, head_seconds=request_seconds, most=connections)
    return uvicorn.Config(
        app,
        http=connection,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_keep_alive=15,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=HEAD_BYTES,
    )


class _Server(uvicorn.Server):
    """Says when it answers, and tells the app of its end before the connections are closed."""

    def __init__(self, config: uvicorn.Config, draining: threading.Event, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._draining, self._ready = draining, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._draining.set()
        super().handle_exit(sig, frame)

    def end(self) -> None:
        self._draining.set()
        self.should_exit = True


@contextmanager
def _signals(end: Callable[[], None]) -> Iterator[None]:
    """
    SIGTERM and Ctrl+C call `end` instead of ending the process. uvicorn has handlers of its own while it runs, and
    afterwards raises what it caught once more; it then arrives here and does no harm, so that an orderly end is code 0.
    """
    former = {number: signal.signal(number, lambda *_: end()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    host = settings.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, settings.port), family=family, backlog=2048)
        # Connections have both from the socket that takes them. asyncio would set the first by itself, but not on one
        # that does not say it is TCP's; the end of an answer then waits 40 ms for the client to acknowledge its head.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREAD_SECONDS)
    except OSError as error:
        message = f"{PREFIX}PORT: cannot listen on {host}:{settings.port} ({error.strerror}); give another one"
        raise InvalidSettings([FieldError("/port", InvalidSettings.code, message)]) from None
    with listener:
        yield listener


def _address(settings: Settings, listener: socket.socket) -> str:
    host = settings.host.strip("[]")
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
