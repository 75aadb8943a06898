"""Commands that ask something else of a job that is on record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from search.errors import UserError
from service.client import Client
from service.commands.options import JobId, Json, Url
from service.documents import JobDocument
from service.terminal import Terminal, read_document

Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="NAME=VALUE", help="Set a label; NAME= takes it off.")
]
Priority = Annotated[int | None, typer.Option(help="Jobs of higher priority start first.")]
Trials = Annotated[int | None, typer.Option(min=1, help="Candidates to score.")]
Limits = Annotated[list[str] | None, typer.Option("--budget", metavar="METRIC=LIMIT", help="Such as macs=25%.")]
Key = Annotated[str | None, typer.Option(help="The same key gives the same job.")]


def pause(job: JobId, as_json: Json = False, url: Url = None) -> None:
    """Lay a job down until it is resumed; what it has come to stays."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        found = client.jobs.pause(job)
    terminal.show(f"{found.id} {'is paused' if found.paused else 'will be paused'}", found)
    terminal.hint("let it go on", f"stillhouse resume {job}")


def resume(job: JobId, as_json: Json = False, url: Url = None) -> None:
    """Let a paused job go on where it was."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        found = client.jobs.resume(job)
    terminal.show(f"{found.id} goes on", found)
    terminal.hint("watch it", f"stillhouse watch {job}")


def change(
    job: JobId,
    label: Labels = None,
    priority: Priority = None,
    trials: Trials = None,
    budget: Limits = None,
    revision: Annotated[int | None, typer.Option(help="Refuse if the job is at another one by now.")] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Change a job's labels, priority, trials or, until it is first taken, its budget."""
    terminal = Terminal(as_json=as_json)
    labels = {name: value or None for name, value in _pairs(label, "--label").items()}
    limits = _pairs(budget, "--budget")
    if not labels and not limits and priority is None and trials is None:
        raise UserError("say what is to change: --label, --priority, --trials or --budget")
    with Client(url) as client:
        found = client.jobs.update(
            job,
            labels=labels or None,
            priority=priority,
            trials=trials,
            budget=limits or None,
            revision=revision,
        )
    terminal.show(f"{found.id} is changed (revision {found.revision})", found)


def retry(job: JobId, idempotency_key: Key = None, as_json: Json = False, url: Url = None) -> None:
    """Submit a job that failed or was cancelled once more."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client, terminal.waiting("the server is checking the spec"):
        found = client.jobs.retry(job, idempotency_key)
    _made(terminal, found)


def clone(
    job: JobId,
    label: Labels = None,
    priority: Priority = None,
    trials: Trials = None,
    budget: Limits = None,
    patch: Annotated[
        str | None, typer.Option(metavar="FILE", help="More differences: part of a job in YAML or JSON.")
    ] = None,
    idempotency_key: Key = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Submit a job like another one, with differences. A --budget takes the place of the whole budget."""
    terminal = Terminal(as_json=as_json)
    changes: dict[str, Any] = dict(read_document(patch)) if patch is not None else {}
    if label:
        changes["labels"] = {name: value or None for name, value in _pairs(label, "--label").items()}
    if priority is not None:
        changes["priority"] = priority
    if trials is not None:
        changes["search"] = {**changes.get("search", {}), "trials": trials}
    with Client(url) as client, terminal.waiting("the server is checking the spec"):
        if budget:
            former = client.jobs.get(job).spec["budget"]
            changes["budget"] = dict.fromkeys(former) | _pairs(budget, "--budget")
        found = client.jobs.clone(job, changes, idempotency_key)
    _made(terminal, found)


def delete(
    job: JobId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Take out a job that has ended, with its files."""
    terminal = Terminal(as_json=as_json)
    if not yes and not typer.confirm(f"Delete {job} and its student?", err=True):
        raise typer.Exit(0)
    with Client(url) as client:
        client.jobs.delete(job)
    terminal.show(f"{job} is gone", {"id": job, "deleted": True})


def _made(terminal: Terminal, job: JobDocument) -> None:
    if terminal.as_json:
        terminal.show("", job)
    else:
        terminal.out.print(job.id)
    terminal.hint("watch it", f"stillhouse watch {job.id}")


def _pairs(words: Sequence[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for word in words or ():
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise UserError(f"`{option} {word}` is not NAME=VALUE")
        pairs[name] = value
    return pairs
