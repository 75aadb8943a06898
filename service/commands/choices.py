"""Commands that help to write a job: what there is to choose from, and what a job would be."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from service.client import Client
from service.commands.options import Json, SpecFile, Url
from service.schemas import CatalogEntry, Plan
from service.screens.plan import plan_screen
from service.screens.tables import catalog_table
from service.terminal import Terminal, read_document
from service.wire import Unreachable

Local = Annotated[bool, typer.Option("--local", help="Ask this machine's installation instead of a server.")]


def plan(
    spec: SpecFile,
    local: Local = False,
    report: Annotated[bool, typer.Option("--report", help="Say of every module what can be done with it.")] = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Check a job and show what it would do: bounds, limits, time and cost; nothing is trained."""
    terminal = Terminal(as_json=as_json)
    document = read_document(spec)
    with terminal.waiting("surveying the teacher, timing some of its steps"):
        found, here = (_plan_here(document), True) if local else _plan_where(document, url)
    terminal.show(plan_screen(found, width=terminal.out.width, signs=terminal.signs, report=report), found)
    terminal.hint("go", f"stillhouse {'local' if here else 'submit'} {spec}")


def _plan_where(document: dict[str, object], url: str | None) -> tuple[Plan, bool]:
    """By the server; here when nobody named a server and none answers where one usually would."""
    try:
        with Client(url) as client:
            return client.plan(document), False
    except Unreachable:
        if url or os.environ.get("STILLHOUSE_URL"):
            raise
        return _plan_here(document), True


def _plan_here(document: dict[str, object]) -> Plan:
    from search.files import Files
    from search.spec import read_spec
    from service.checker import DirectChecker
    from service.settings import read_settings

    checker = DirectChecker(Files(cache=read_settings().home / "cache", roots=None))
    return Plan.model_validate(checker.check(read_spec(document)))


def catalog(
    kind: Annotated[str, typer.Argument(help="teachers, datasets, distillers, strategies or costs.")],
    local: Local = False,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List the plugins of a kind with their options."""
    terminal = Terminal(as_json=as_json)
    with terminal.waiting("asking"):
        entries = _entries_here(kind) if local else _entries_there(kind, url)
    terminal.show(
        catalog_table(entries), {"kind": kind, "entries": [entry.model_dump(mode="json") for entry in entries]}
    )


def _entries_there(kind: str, url: str | None) -> list[CatalogEntry]:
    with Client(url) as client:
        return list(client.catalog(kind))


def _entries_here(kind: str) -> list[CatalogEntry]:
    from search.files import Files
    from service.checker import DirectChecker
    from service.settings import read_settings

    checker = DirectChecker(Files(cache=read_settings().home / "cache", roots=None))
    return [CatalogEntry.model_validate(entry) for entry in checker.catalog(kind)]
