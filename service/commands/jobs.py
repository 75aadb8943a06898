"""Commands that speak to a server about jobs."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from search.errors import FieldError, InvalidSpec, did_you_mean
from service.board import Board
from service.client import Client
from service.commands.options import Filter, JobId, Json, OrderBy, Out, SpecFile, Timeout, Url
from service.documents import EventDocument, JobDocument, LogLine
from service.screens.live import event_line
from service.screens.result import PLOTTED, as_svg, result_screen, shown_path, snippet, trial_points, unfinished_screen
from service.screens.tables import job_screen, jobs_table, ordered, pareto, tenants_table, trials_table
from service.takehome import check_place
from service.terminal import Exit, Terminal, read_document
from service.wire import TimedOut
from workers.ports import JobState, Level


def submit(
    spec: SpecFile,
    wait: Annotated[bool, typer.Option("--wait", help="Stay and watch until the job has ended.")] = False,
    timeout: Timeout = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key with the same spec gives the same job.")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Submit a job."""
    terminal = Terminal(as_json=as_json)
    document = read_document(spec)
    with Client(url) as client:
        with terminal.waiting("the server is checking the spec"):
            job = client.jobs.create(document, idempotency_key)
        if wait:
            raise typer.Exit(attend(client, job, terminal, timeout=timeout))
    if as_json:
        terminal.show("", job)
    else:
        terminal.out.print(job.id)
    terminal.hint("watch it", f"stillhouse watch {job.id}")


def watch(job: JobId, timeout: Timeout = None, as_json: Json = False, url: Url = None) -> None:
    """Watch a job until it ends; Ctrl+C leaves it going. With --json, a line for each event."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        raise typer.Exit(attend(client, client.jobs.get(job), terminal, timeout=timeout, events=True))


def attend(
    client: Client, job: JobDocument, terminal: Terminal, *, timeout: float | None = None, events: bool = False
) -> Exit:
    """
    Shows the job until it ends, then its result. Under --json the events are printed if `events`, else the document at
    the end.
    """
    board = Board(job.id, job.spec)
    try:
        with terminal.following(board) as take:
            for event in _in_time(client.jobs.stream(job.id), timeout):
                if events and terminal.as_json:
                    terminal.line(event)
                    board.take(event)
                else:
                    take(event)
    except KeyboardInterrupt:
        terminal.say(f"Detached. {job.id} goes on.", "bold")
        _ways_back(terminal, job.id)
        return Exit.DETACHED
    except TimedOut as error:
        terminal.complain(error)
        _ways_back(terminal, job.id)
        return Exit.TIMED_OUT
    job = client.jobs.get(job.id)
    if not (events and terminal.as_json):
        picture = result_screen(job, board.points(PLOTTED), width=terminal.out.width, signs=terminal.signs)
        terminal.show(picture, job)
    if job.student is not None:
        terminal.hint("take the student home", f"stillhouse pull {job.id} --out student")
    return Exit.OK if job.state is JobState.SUCCEEDED else Exit.JOB_FAILED


def _ways_back(terminal: Terminal, job_id: str) -> None:
    terminal.hint("watch it again", f"stillhouse watch {job_id}")
    terminal.hint("cancel it", f"stillhouse cancel {job_id}")


def _in_time(events: Iterator[EventDocument], timeout: float | None) -> Iterator[EventDocument]:
    """The events, read in a thread of their own, because a silent connection would not notice that time is up."""
    if timeout is None:
        yield from events
        return
    arrived: queue.SimpleQueue[EventDocument | BaseException | None] = queue.SimpleQueue()

    def read() -> None:
        try:
            for event in events:
                arrived.put(event)
            arrived.put(None)
        except BaseException as error:
            arrived.put(error)

    threading.Thread(target=read, daemon=True).start()
    deadline = time.monotonic() + timeout
    while True:
        try:
            found = arrived.get(timeout=max(deadline - time.monotonic(), 0.0))
        except queue.Empty:
            raise TimedOut(f"the job has not ended within {timeout:g} s; it goes on") from None
        if found is None:
            return
        if isinstance(found, BaseException):
            raise found
        yield found


def jobs(
    state: Annotated[JobState | None, typer.Option(case_sensitive=False, help="Only jobs in this state.")] = None,
    only: Filter = "",
    order_by: OrderBy = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 20,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List jobs, newest first unless --order-by says otherwise."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        found = list(
            islice(client.jobs.list(state=state, filter=only, order_by=order_by, page_size=min(limit, 500)), limit)
        )
    if not found and not as_json:
        terminal.say("No such jobs." if only or state else "No jobs yet.")
        terminal.hint("submit one", "stillhouse submit examples/quickstart.yaml")
        return
    table = jobs_table(found, now=datetime.now(UTC))
    terminal.show(table, {"jobs": [job.model_dump(mode="json") for job in found]})


def show(
    job: JobId,
    svg: Annotated[Path | None, typer.Option(help="Also write the screen as a picture (SVG).")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Show a job: its result when it has ended, else how far it has come."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        found = client.jobs.get(job)
        if as_json:
            terminal.show("", found)
            return
        signs, width = terminal.signs, terminal.out.width
        if found.student is not None:
            points = trial_points(client.jobs.trials(job))
            terminal.draw(result_screen(found, points, width=width, signs=signs))
            if svg is not None:
                svg.write_text(as_svg(found, points), encoding="utf-8")
            terminal.hint("take the student home", f"stillhouse pull {job} --out student")
        elif found.state.terminal:
            terminal.draw(unfinished_screen(found, signs=signs))
        else:
            terminal.draw(job_screen(found, signs=signs))
            terminal.hint("watch it", f"stillhouse watch {job}")


def trials(
    job: JobId,
    sort: Annotated[str | None, typer.Option(help="number, accuracy, or a cost such as macs.")] = None,
    front: Annotated[bool, typer.Option("--pareto", help="Only trials that none beats in accuracy and macs.")] = False,
    only: Filter = "",
    order_by: OrderBy = "",
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List the trials of a job."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        found = list(client.jobs.trials(job, filter=only, order_by=order_by))
        document = client.jobs.get(job)
    if found and sort is not None:
        known = ["number", "accuracy", *found[0].cost]
        if sort not in known:
            message = f"trials cannot be sorted by `{sort}`{did_you_mean(sort, known)}"
            raise InvalidSpec([FieldError("--sort", "INVALID_VALUE", message, tuple(known))])
    shown = pareto(found, PLOTTED) if front else found
    shown = shown if sort is None else ordered(shown, sort)
    terminal.show(
        trials_table(shown, document.teacher.cost, document.levels),
        {"trials": [trial.model_dump(mode="json") for trial in shown]},
    )


def events(
    job: JobId,
    after: Annotated[int, typer.Option(min=0, help="Leave out events up to this number.")] = 0,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Print the events of a job; with --json one to a line."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        spec = client.jobs.get(job).spec
        found = client.jobs.stream(job, after) if follow else _recorded(client, job, after)
        try:
            for event in found:
                if as_json:
                    terminal.line(event)
                else:
                    said = event_line(event, spec) or event.kind.lower().replace("_", " ")
                    terminal.out.print(f"{event.seq:>5}  {event.at.astimezone():%H:%M:%S}  {said}", soft_wrap=True)
        except KeyboardInterrupt:
            raise typer.Exit(Exit.DETACHED) from None


def _recorded(client: Client, job_id: str, after: int) -> Iterator[EventDocument]:
    while page := client.jobs.events(job_id, after):
        yield from page
        after = page[-1].seq


def logs(
    job: JobId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
    trial: Annotated[str | None, typer.Option(help="Only lines about this trial (its id).")] = None,
    level: Annotated[
        Level, typer.Option(case_sensitive=False, help="Only lines of this level and above.")
    ] = Level.INFO,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Print what the drivers of a job have logged; with --json one line to a line."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        try:
            for line in _logged(client, job, trial, level, follow=follow):
                if as_json:
                    terminal.line(line)
                else:
                    said = f"{line.at.astimezone():%H:%M:%S} {line.level:8} {line.logger}  {line.message}"
                    terminal.out.print(said, soft_wrap=True, markup=False, highlight=False)
        except KeyboardInterrupt:
            raise typer.Exit(Exit.DETACHED) from None


def _logged(client: Client, job_id: str, trial: str | None, level: Level, *, follow: bool) -> Iterator[LogLine]:
    after = 0
    while True:
        over = not follow or client.jobs.get(job_id).state.terminal
        while page := client.jobs.logs(job_id, after, trial=trial, level=level):
            yield from page
            after = page[-1].seq
        if over:
            return
        time.sleep(LOOK_SECONDS)


LOOK_SECONDS = 1.0
"""Between two looks at a log that is followed; what a driver says is on record as often."""


def pull(job: JobId, out: Out = Path("student"), as_json: Json = False, url: Url = None) -> None:
    """Fetch the student of a job, its SHA-256 verified."""
    terminal = Terminal(as_json=as_json)
    check_place(out)
    with Client(url) as client, terminal.transferring("student") as told:
        written = client.jobs.pull(job, out, on_bytes=told)
        spec = client.jobs.get(job).spec
    if as_json:
        terminal.show("", {"job": job, "out": str(out.absolute()), "files": [path.name for path in written]})
        return
    for path in written:
        terminal.out.print(shown_path(path), soft_wrap=True)
    terminal.say("\nLoad it from Python:\n", "dim")
    for line in snippet(min(path.parent for path in written), spec):
        terminal.say(f"    {line}", "cyan")


def usage(as_json: Json = False, url: Url = None) -> None:
    """Show what your tenant uses, and what it may."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        found = client.usage()
    terminal.show(tenants_table([found]), found)


def cancel(job: JobId, as_json: Json = False, url: Url = None) -> None:
    """Ask a job to end."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        found = client.jobs.cancel(job)
    ended = found.state.terminal
    terminal.show(f"{found.id} {'is ' + found.state if ended else 'will be cancelled'}", found)
    if not ended:
        terminal.hint("see it end", f"stillhouse watch {job}")
