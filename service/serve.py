"""The server's processes: everything in one, or the API and the dispatcher each by itself."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

import uvicorn

from search.errors import FieldError, UserError
from search.files import Files
from service.app import create_app
from service.checker import CachedChecker, ChildChecker, warm
from service.drive import Launcher
from service.settings import PREFIX, InvalidSettings, Settings
from service.store import engine as database
from service.store.ledger import SqlLedger
from workers.artifacts import FolderArtifacts
from workers.dispatcher import Dispatcher

logger = logging.getLogger("stillhouse.serve")

GRACE_SECONDS = 20
"""How long requests may take to finish after the server was told to end."""
_CONNECTIONS = 512
_HEADER_BYTES = 32 * 1024

OnReady = Callable[[str], None]


def migrate(settings: Settings) -> None:
    """
    Brings the database to the tables that this version works with.

    Raises:
        StoreUnavailable: it cannot be reached, or a newer version has been there.
    """
    database.migrate(database.connect(settings.database_url))


def serve(settings: Settings, on_ready: OnReady | None = None) -> None:
    """
    API and dispatcher in one process, until SIGTERM or Ctrl+C. `on_ready` is given the address once it answers.

    A SQLite database is migrated first; another one must have been (`migrate`). Jobs under way go on without us.

    Raises:
        UserError: it may not listen there, the port is taken, another server uses the same home, or the tables are of
            another version.
        StoreUnavailable: the database cannot be reached.
    """
    settings.check_binding()
    with _alone(settings):
        ledger = _ledger(settings)
        draining = threading.Event()
        with _dispatching(settings, ledger, draining):
            _answer_requests(settings, ledger, draining, on_ready)


def serve_api(settings: Settings, on_ready: OnReady | None = None) -> None:
    """The API alone; any number of these may share one Postgres. Raises as `serve` does."""
    settings.check_binding()
    with _alone(settings):
        _answer_requests(settings, _ledger(settings), threading.Event(), on_ready)


def serve_dispatcher(settings: Settings) -> None:
    """The dispatcher alone, until SIGTERM or Ctrl+C; any number may share one Postgres. Raises as `serve` does."""
    stop = threading.Event()
    with _alone(settings), _signals(lambda: stop.set()):
        _dispatcher(settings, _ledger(settings)).run(stop)


@contextmanager
def _alone(settings: Settings) -> Iterator[None]:
    """SQLite serves one process; with Postgres a lease decides, and nobody needs to be alone."""
    with database.sole(settings.home) if settings.embedded else nullcontext():
        yield


def _ledger(settings: Settings) -> SqlLedger:
    engine = database.connect(settings.database_url)
    if settings.embedded:
        database.migrate(engine)
    found, expected = database.current_revision(engine), database.latest_revision()
    if found != expected:
        raise UserError(
            f"the tables in {settings.database} are at revision {found}, and this version works with {expected}; "
            "run `stillhouse migrate`, or start the version that belongs to them"
        )
    return SqlLedger(engine)


def _dispatcher(settings: Settings, ledger: SqlLedger) -> Dispatcher:
    return Dispatcher(
        ledger,
        Launcher(settings),
        owner=f"{socket.gethostname()}:{os.getpid()}",
        slots=settings.concurrent_jobs,
        lease_seconds=settings.lease_seconds,
    )


@contextmanager
def _dispatching(settings: Settings, ledger: SqlLedger, draining: threading.Event) -> Iterator[None]:
    """A dispatcher in a thread; nothing is claimed any more once `draining` is set."""

    def run() -> None:
        try:
            _dispatcher(settings, ledger).run(draining)
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


def _answer_requests(
    settings: Settings, ledger: SqlLedger, draining: threading.Event, on_ready: OnReady | None
) -> None:
    with _listening(settings) as listener:
        files = Files(cache=settings.home / "cache", roots=settings.data_roots)
        checker = CachedChecker(ChildChecker(files, limit_seconds=settings.check_seconds))
        app = create_app(
            settings,
            ledger,
            FolderArtifacts(settings.artifacts),
            checker,
            schema_version=database.latest_revision(),
            draining=draining,
        )
        server = _Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                limit_concurrency=_CONNECTIONS,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=GRACE_SECONDS,
                h11_max_incomplete_event_size=_HEADER_BYTES,
            ),
            draining,
            lambda: on_ready(_address(settings, listener)) if on_ready is not None else None,
        )
        warm(checker)
        with _signals(server.end):
            server.run(sockets=[listener])


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
    except OSError as error:
        message = f"{PREFIX}PORT: cannot listen on {host}:{settings.port} ({error.strerror}); give another one"
        raise InvalidSettings([FieldError("/port", InvalidSettings.code, message)]) from None
    with listener:
        yield listener


def _address(settings: Settings, listener: socket.socket) -> str:
    host = settings.host.strip("[]")
    host = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
