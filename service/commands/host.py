"""Commands that keep a server going."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import RenderableType

from service import latchkey
from service.commands.options import Json
from service.journal import open_journal
from service.settings import Settings, read_settings
from service.terminal import Terminal

logger = logging.getLogger("stillhouse.serve")

Host = Annotated[str | None, typer.Option(help="Where to listen.", show_default="127.0.0.1")]
Port = Annotated[int | None, typer.Option(help="0 takes any that is free.", show_default="8431")]
Home = Annotated[Path | None, typer.Option(help="Where everything is kept.", show_default="~/.stillhouse")]
Backend = Annotated[Literal["ray", "inline"] | None, typer.Option(help="What trials run on.", show_default="ray")]


def serve(
    host: Host = None, port: Port = None, home: Home = None, backend: Backend = None, as_json: Json = False
) -> None:
    """Serve: API and dispatcher in one process. Everything else is set by STILLHOUSE_* variables."""
    settings = read_settings(host=host, port=port, home=home, backend=backend)
    terminal = _opened(settings, as_json)
    from service import serve as processes

    processes.serve(settings, partial(_ready, terminal, settings), partial(_made, terminal, settings))


def api(host: Host = None, port: Port = None, home: Home = None, as_json: Json = False) -> None:
    """Serve the API alone; several may share one Postgres."""
    settings = read_settings(host=host, port=port, home=home)
    terminal = _opened(settings, as_json)
    from service import serve as processes

    processes.serve_api(settings, partial(_ready, terminal, settings), partial(_made, terminal, settings))


def dispatcher(home: Home = None, backend: Backend = None) -> None:
    """Start the jobs that an API has taken; several may share one Postgres."""
    settings = read_settings(home=home, backend=backend)
    terminal = _opened(settings, as_json=False)
    from service import serve as processes

    terminal.say(f"Dispatching jobs of {settings.database} to {_engine(settings)}. Ctrl+C ends it; jobs go on.")
    processes.serve_dispatcher(settings)


def migrate(home: Home = None) -> None:
    """Bring the database to the tables of this version."""
    settings = read_settings(home=home)
    terminal = _opened(settings, as_json=False)
    from service import serve as processes

    processes.migrate(settings)
    terminal.say(f"{settings.database} has the tables of this version.")


def _opened(settings: Settings, as_json: bool) -> Terminal:
    """Logs go to standard error, one line each, and what there is to say goes with them if they are for programs."""
    open_journal(settings.log_format, settings.log_level, secrets=settings.secrets)
    return (Terminal if settings.log_format == "text" else _Logged)(as_json=as_json)


class _Logged(Terminal):
    """Where nobody looks at standard error but a collector of lines."""

    def say(self, message: RenderableType, style: str = "") -> None:
        logger.info("%s", message)

    def hint(self, what: str, command: str) -> None:
        """Hints are for people."""


def _ready(terminal: Terminal, settings: Settings, url: str) -> None:
    if terminal.as_json:
        terminal.show("", {"url": url, "database": settings.database, "home": str(settings.home)})
        return
    key = "nobody is asked for a key" if settings.auth == "off" else "clients must send a key"
    terminal.say(f"Stillhouse answers at {url} ({key})", "bold")
    terminal.say(f"record {settings.database}, trials on {_engine(settings)}. Ctrl+C ends it; jobs go on.", "dim")
    usual = settings.home == Settings.model_fields["home"].get_default().expanduser()
    where = f"STILLHOUSE_URL={url}" + ("" if usual else f" STILLHOUSE_HOME={settings.home}")  # where the key is found
    terminal.hint("submit a job", f"{where} stillhouse submit examples/quickstart.yaml")


def _made(terminal: Terminal, settings: Settings, secret: str) -> None:
    """The one time that the key is shown, and only to somebody who looks: what is not a terminal may be a log."""
    place = latchkey.file_in(settings.home)
    if terminal.err.is_terminal:
        terminal.say(f"A key for this machine, shown once: {secret}", "bold")
    terminal.say(f"{place} keeps a key for clients on this machine; they find it there by themselves.", "dim")


def _engine(settings: Settings) -> str:
    if settings.backend == "inline":
        return "the driver process itself"
    return "Ray on this machine" if settings.ray_address == "local" else f"Ray at {settings.ray_address}"
