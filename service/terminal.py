"""Where the command line writes: data to standard output, everything meant for a person meanwhile to standard error."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol

import yaml
from pydantic import BaseModel
from rich.console import RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.text import Text

from search.errors import BudgetImpossible, FieldError, InvalidSpec, NotFound, StillhouseError, UserError
from service import wire
from service.board import Board, Happened
from service.screens.glass import Glass, spelled
from service.screens.live import event_line, live_screen
from service.screens.tables import mistakes
from service.screens.words import Signs
from service.settings import InvalidSettings

_WIDTH = 120
"""Columns where there is no terminal to ask."""
_FRAMES = 1
"""Pictures per second of a live view; each takes some 35 ms of a processor that the job could use."""

_HEADLINES = {
    BudgetImpossible.code: "The budget cannot be kept",
    InvalidSettings.code: "The settings have mistakes",
}


class Exit(IntEnum):
    """How a command ends."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    REFUSED = 3
    """The key is missing, wrong or not enough."""
    NOT_FOUND = 4
    UNREACHABLE = 5
    TIMED_OUT = 124
    DETACHED = 130


class Terminal:
    """One command's standard streams. `as_json` prints documents instead of pictures."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.out = _console(sys.stdout)
        self.err = _console(sys.stderr)

    @property
    def signs(self) -> Signs:
        return Signs.of(self.out)

    @property
    def live(self) -> bool:
        """Whether pictures may move."""
        return self.err.is_terminal and not self.err.is_dumb_terminal and not os.environ.get("NO_COLOR")

    def show(self, picture: RenderableType, document: BaseModel | Mapping[str, Any]) -> None:
        """The document as one JSON object under --json, else the picture."""
        if self.as_json:
            self.out.file.write(spelled(_json(document)) + "\n")
            self.out.file.flush()
        else:
            self.draw(picture)

    def draw(self, picture: RenderableType) -> None:
        """A picture as data; without a terminal no line ends in blanks."""
        if self.out.is_terminal:
            self.out.print(picture)
            return
        with self.out.capture() as drawn:
            self.out.print(picture)
        self.out.file.writelines(f"{line.rstrip()}\n" for line in drawn.get().splitlines())

    def line(self, document: BaseModel) -> None:
        """One line of NDJSON."""
        self.out.file.write(spelled(document.model_dump_json()) + "\n")
        self.out.file.flush()

    def say(self, message: RenderableType, style: str = "") -> None:
        """A message for the person at the screen."""
        self.err.print(message, style=style)

    def hint(self, what: str, command: str) -> None:
        """What to do next."""
        self.err.print(Text.assemble((f"{what}: ", "dim"), (command, "cyan")), soft_wrap=True)

    def complain(self, error: StillhouseError) -> Exit:
        """Says what is wrong and what to do about it; the answer is how the command ends."""
        errors: tuple[FieldError, ...] = getattr(error, "errors", ())
        pointed = [found for found in errors if found.pointer or len(errors) > 1]
        headline = (
            "The spec has mistakes" if isinstance(error, InvalidSpec | wire.Invalid) and pointed else error.message
        )
        if pointed:
            headline = _HEADLINES.get(error.code, headline)
        signs = Signs.of(self.err)
        self.err.print(Text.assemble((f"{signs.cross} ", "bold red"), (headline, "bold")), soft_wrap=True)
        if pointed:
            self.err.print(mistakes(pointed, signs))
        match error:
            case wire.Unreachable():
                self.hint("start a server", "stillhouse serve")
                self.hint("or name another one", "export STILLHOUSE_URL=http://...")
            case wire.Unauthenticated():
                self.hint("give a key in the environment", "export STILLHOUSE_API_KEY=...")
            case wire.ServerError():
                self.say(f"request {error.request_id}", "dim") if error.request_id else None
        return exit_of(error)

    @contextmanager
    def following(self, board: Board) -> Iterator[Follower]:
        """Shows the job while events are handed to what this gives."""
        if self.as_json or not self.live:
            yield _Lines(self, board)
            return
        signs = Signs.of(self.err)
        with Live(
            get_renderable=lambda: live_screen(board, now=datetime.now(UTC), signs=signs),
            console=self.err,
            refresh_per_second=_FRAMES,
            transient=True,
            vertical_overflow="crop",
        ):
            yield board.take

    def waiting(self, message: str) -> AbstractContextManager[object]:
        """A sign of life while something takes its time."""
        if not self.live:
            return nullcontext()
        return self.err.status(Text(message, "dim"), spinner="dots" if Signs.of(self.err).braille else "line")

    @contextmanager
    def transferring(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for what is being fetched; what this gives is told the bytes so far and in all."""
        columns = (TextColumn("{task.description}", style="dim"), BarColumn(complete_style="cyan"), DownloadColumn())
        with Progress(*columns, console=self.err, transient=True, disable=not self.live) as progress:
            bar = progress.add_task(what, total=None)
            yield lambda done, total: progress.update(bar, completed=done, total=total)


class Follower(Protocol):
    def __call__(self, event: Any, /) -> None: ...


class _Lines:
    """A line for each event that says something new."""

    def __init__(self, terminal: Terminal, board: Board) -> None:
        self._terminal, self._board = terminal, board

    def __call__(self, event: Happened) -> None:
        self._board.take(event)
        line = event_line(event, self._board.spec)
        if line is not None:
            self._terminal.err.print(f"{event.at.astimezone():%H:%M:%S}  {line}", soft_wrap=True, markup=False)


def exit_of(error: StillhouseError) -> Exit:
    match error:
        case wire.JobFailed():
            return Exit.JOB_FAILED
        case wire.Unauthenticated() | wire.PermissionDenied():
            return Exit.REFUSED
        case wire.NotFound() | NotFound():
            return Exit.NOT_FOUND
        case wire.TimedOut():
            return Exit.TIMED_OUT
        case wire.Unreachable() | wire.ServerUnavailable():
            return Exit.UNREACHABLE
        case UserError() | wire.StatusError():
            return Exit.USAGE if not isinstance(error, wire.ServerError) else Exit.JOB_FAILED
    return Exit.JOB_FAILED


def read_document(location: str) -> dict[str, Any]:
    """
    The YAML or JSON mapping in a file, or on standard input when `location` is `-`.

    Raises:
        InvalidSpec: it cannot be read, or is not a mapping of things that JSON can say.
    """
    try:
        text = sys.stdin.read() if location == "-" else Path(location).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InvalidSpec([FieldError("", "UNREADABLE", f"{location} cannot be read: {reason}")]) from None
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
        json.dumps(document, allow_nan=False)
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise InvalidSpec([FieldError("", "MALFORMED_YAML", f"{location}{where}: {error.problem}")]) from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise InvalidSpec([FieldError("", "MALFORMED_YAML", f"{location}: {error}")]) from None
    if not isinstance(document, dict):
        raise InvalidSpec([FieldError("", "MALFORMED_YAML", f"{location} must hold a mapping such as `teacher: ...`")])
    return document


class _Loader(yaml.SafeLoader):
    """Dates stay the text that was written, because JSON has none; a key that comes twice is a mistake."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - a copy, as PyYAML wants it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(problem=f"`{key.value}` comes twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _json(document: BaseModel | Mapping[str, Any]) -> str:
    if isinstance(document, BaseModel):
        return document.model_dump_json(indent=2)
    return json.dumps(document, indent=2, default=lambda value: value.model_dump(mode="json"))


def _console(stream: Any) -> Glass:
    plain = bool(os.environ.get("NO_COLOR")) or not stream.isatty()
    columns = os.environ.get("COLUMNS", "")
    width = None if stream.isatty() else int(columns) if columns.isdigit() else _WIDTH
    return Glass(file=stream, color_system=None if plain else "auto", width=width)
