"""
The `stillhouse` command.

Data goes to standard output, messages and progress to standard error. Exit codes are those of `service.terminal.Exit`.
Nothing imported here loads torch, Ray or SQLAlchemy: the commands that need them import them themselves.
"""

from __future__ import annotations

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from search.errors import StillhouseError
from service.commands import changes, choices, here, holdings, host, jobs, operate, webhooks
from service.terminal import Terminal


class _Commands(TyperGroup):
    """Errors of our own are told in words, with the exit code that belongs to them."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StillhouseError as error:
            raise typer.Exit(Terminal().complain(error)) from None
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has left, as `head` does
            raise typer.Exit(0) from None


app = typer.Typer(
    cls=_Commands,
    help="Make a CNN small: teacher, dataset and budget in; a distilled student under its budget out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PANELS = {
    "First": (here.quickstart, here.doctor, choices.catalog),
    "Jobs": (
        choices.plan,
        jobs.submit,
        jobs.watch,
        jobs.jobs,
        jobs.show,
        jobs.trials,
        jobs.events,
        jobs.logs,
        jobs.pull,
        jobs.cancel,
        changes.pause,
        changes.resume,
        changes.change,
        changes.retry,
        changes.clone,
        changes.delete,
        jobs.usage,
        holdings.upload,
        here.local,
    ),
    "Servers": (host.serve, host.api, host.dispatcher, host.migrate, here.version),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)
app.add_typer(webhooks.webhooks, name="webhooks", rich_help_panel="Jobs")
app.add_typer(holdings.uploads, name="uploads", rich_help_panel="Jobs")
app.add_typer(holdings.teachers, name="teachers", rich_help_panel="Jobs")
app.add_typer(holdings.datasets, name="datasets", rich_help_panel="Jobs")
app.add_typer(operate.keys, name="keys", rich_help_panel="Servers")
app.add_typer(operate.tenants, name="tenants", rich_help_panel="Servers")


def main() -> None:
    app(prog_name="stillhouse")


if __name__ == "__main__":
    main()
