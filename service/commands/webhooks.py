"""Commands about webhooks: where a server tells of jobs, and what became of what it told."""

from __future__ import annotations

from itertools import islice
from typing import Annotated

import typer

from service.client import Client
from service.commands.options import Json, Url
from service.schemas import WebhookDocument
from service.screens.tables import deliveries_table, webhooks_table
from service.store.values import DeliveryState
from service.terminal import Terminal

webhooks = typer.Typer(help="Webhooks: have another service told of your jobs.", no_args_is_help=True)

WebhookId = Annotated[str, typer.Argument(metavar="WEBHOOK", help="Its id, such as webhook_01k...")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="Its id, such as delivery_01k...")]


@webhooks.command("create")
def create(
    to: Annotated[str, typer.Argument(metavar="ADDRESS", help="https://..., at a host that the operator allows.")],
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Of event, once for each.", show_default="the ends of jobs")
    ] = None,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """Have your jobs told to an address; prints the secret to check signatures with, this once."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        made = client.webhooks.create(to, kind)
    terminal.show(made.secret, made)
    terminal.say(f"{made.id} is told of {', '.join(made.kinds)}. Its secret is shown this once.", "dim")
    terminal.hint("try it", f"stillhouse webhooks test {made.id}")


@webhooks.command("list")
def show_all(as_json: Json = False, url: Url = None) -> None:
    """List them, newest first."""
    with Client(url) as client:
        found: list[WebhookDocument] = [*client.webhooks.list()]
    Terminal(as_json=as_json).show(webhooks_table(found), {"webhooks": found})


@webhooks.command("delete")
def delete(webhook: WebhookId, as_json: Json = False, url: Url = None) -> None:
    """Send nothing more to one."""
    with Client(url) as client:
        client.webhooks.delete(webhook)
    Terminal(as_json=as_json).show(f"{webhook} is deleted", {"id": webhook, "deleted": True})


@webhooks.command("test")
def try_out(webhook: WebhookId, as_json: Json = False, url: Url = None) -> None:
    """Send a letter that tells of nothing."""
    terminal = Terminal(as_json=as_json)
    with Client(url) as client:
        sent = client.webhooks.test(webhook)
    terminal.show(sent.id, sent)
    terminal.hint("see what becomes of it", f"stillhouse webhooks deliveries {webhook}")


@webhooks.command("deliveries")
def deliveries(
    webhook: WebhookId,
    state: Annotated[DeliveryState | None, typer.Option(help="Only those.", case_sensitive=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="The newest so many.")] = 50,
    as_json: Json = False,
    url: Url = None,
) -> None:
    """List what was to be sent to one, and what became of it."""
    with Client(url) as client:
        found = list(islice(client.webhooks.deliveries(webhook, state=state, page_size=min(limit, 500)), limit))
    Terminal(as_json=as_json).show(deliveries_table(found), {"deliveries": found})


@webhooks.command("replay")
def replay(webhook: WebhookId, delivery: DeliveryId, as_json: Json = False, url: Url = None) -> None:
    """Send again what was delivered or given up."""
    with Client(url) as client:
        found = client.webhooks.replay(webhook, delivery)
    Terminal(as_json=as_json).show(f"{found.id} is due again", found)
