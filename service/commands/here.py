"""Commands that need no server: the same job in this process, a look at this machine, the whole demonstration."""

from __future__ import annotations

from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Literal

import typer

from search.spec import read_spec
from service.board import Board
from service.commands.options import Json, Out, SpecFile
from service.journal import open_journal
from service.screens.result import PLOTTED, result_screen
from service.settings import read_settings
from service.takehome import check_place
from service.terminal import Exit, Terminal, read_document
from workers.events import Event
from workers.ports import JobState

Home = Annotated[
    Path | None, typer.Option(help="Where teachers, caches and logs are kept.", show_default="~/.stillhouse")
]


def local(
    spec: SpecFile,
    out: Out = Path("student"),
    backend: Annotated[Literal["ray", "inline"] | None, typer.Option(help="What the trials run on.")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Run a job in this process, without a server, to the same result."""
    terminal = Terminal(as_json=as_json)
    job_spec = read_spec(read_document(spec))
    check_place(out)
    settings = read_settings(home=home, backend=backend)
    log = settings.home / "logs" / "local.log"
    _log_to(log)
    from service.local import run_local

    board = Board("local", job_spec.model_dump(mode="json"))
    quiet = Terminal() if as_json else terminal
    try:
        with quiet.following(board) as take:

            def told(event: Event) -> None:
                take(event)

            job = run_local(job_spec, out, backend=settings.backend, home=settings.home, on_event=told)
    except KeyboardInterrupt:
        terminal.say(f"Interrupted. {out} is as it was; the teacher is kept for the next time.", "bold")
        raise typer.Exit(Exit.DETACHED) from None
    folder = None if job.student is None else out  # a student that missed its times is there all the same
    picture = result_screen(job, board.points(PLOTTED), width=terminal.out.width, signs=terminal.signs, folder=folder)
    terminal.show(picture, job)
    if job.state is not JobState.SUCCEEDED:
        terminal.hint("more in the log", str(log))
        raise typer.Exit(Exit.JOB_FAILED)


def _log_to(file: Path) -> None:
    """What libraries have to say goes to a file: the screen shows the job."""
    file.parent.mkdir(parents=True, exist_ok=True)
    open_journal("text", "info", file=file)


def quickstart(
    out: Out = Path("student"),
    home: Annotated[Path, typer.Option(help="Where the server of the demonstration keeps its state.")] = Path(
        ".stillhouse/quickstart"
    ),
    spec: Annotated[
        Path | None, typer.Option(help="Another job than the built-in one (digits, a small ResNet, 12 trials).")
    ] = None,
    as_json: Json = False,
) -> None:
    """The whole way in under three minutes: server, job over HTTP, live view, result, student on disk."""
    from service.quickstart import demonstrate

    terminal = Terminal(as_json=as_json)
    document = None if spec is None else read_document(str(spec))
    raise typer.Exit(demonstrate(terminal, home=home, out=out, document=document))


def doctor(
    deep: Annotated[bool, typer.Option("--deep", help="Also start Ray and do some work on it.")] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Look whether this machine can do the work, and say what to do where it cannot."""
    from service.doctor import examine, findings_table

    terminal = Terminal(as_json=as_json)
    with terminal.waiting("looking around"):
        findings = examine(home=home, deep=deep)
    terminal.show(
        findings_table(findings, terminal.signs), {"checks": [finding.model_dump(mode="json") for finding in findings]}
    )
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(Exit.JOB_FAILED)


def version(as_json: Json = False) -> None:
    """Print the version."""
    number = version_of("stillhouse")
    Terminal(as_json=as_json).show(number, {"version": number})
