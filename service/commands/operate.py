"""
Commands of whoever runs the server: tenants, their limits and their keys.

They work on the database itself, as the settings name it, whether a server is up or not. Whoever can run them can read
everything anyway, so they ask for no key.
"""

from __future__ import annotations

import getpass
import os
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.errors import UserError
from service.commands.options import Json
from service.schemas import LONGEST_LIFE, KeyDocument, NewKey, QuotaUse, Usage
from service.screens.tables import keys_table, tenants_table
from service.settings import read_settings
from service.store.values import DEFAULT, Caller, Quota, Scope
from service.terminal import Terminal

if TYPE_CHECKING:
    from service.store.accounts import SqlAccount, SqlTenants

keys = typer.Typer(help="Keys: make one, list them, revoke one.", no_args_is_help=True)
tenants = typer.Typer(help="Tenants: make one, list them, set their limits.", no_args_is_help=True)

Home = Annotated[Path | None, typer.Option(help="The server's home.", show_default="~/.stillhouse")]
TenantOption = Annotated[str, typer.Option("--tenant", help="Whose key; a new tenant is made.")]
TenantName = Annotated[str, typer.Argument(metavar="NAME", help="a to z, 0 to 9 and -.")]

_LIFE = re.compile(r"([1-9][0-9]{0,6})([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_NONE = "none"


@keys.command("create")
def create_key(
    tenant: TenantOption = DEFAULT,
    scope: Annotated[Scope, typer.Option(help="Each is good for what those before it are.")] = Scope.SUBMIT,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    expires: Annotated[
        str | None, typer.Option(help="After how long, such as 90d or 12h (s, m, h, d, w).", show_default="never")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, once: only its SHA-256 is kept."""
    terminal = Terminal(as_json=as_json)
    lifetime = None if expires is None else _seconds(expires)
    if len(name) > 100:
        raise UserError("the name of a key has at most 100 characters; shorten it")
    house = _House(home)
    _, new = house.tenants.create(tenant)
    if new:
        terminal.say(f"There was no tenant `{tenant}`; it has been made.", "dim")
    key, secret = house.account(tenant).create_key(name or f"{scope} key", scope, lifetime)
    terminal.show(secret, NewKey(**asdict(key), key=secret))
    terminal.say("The key is shown this once, and cannot be had again.", "dim")
    terminal.hint("revoke it", f"stillhouse keys revoke {key.id}")


@keys.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only its keys.", show_default="all")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """List keys, newest first; what they are is nowhere on record."""
    terminal = Terminal(as_json=as_json)
    house = _House(home)
    names = [found.name for found in house.tenants.tenants()] if tenant is None else [tenant]
    found = [KeyDocument(**asdict(key)) for name in names for key in house.account(name).keys(limit=_ALL)]
    found.sort(key=lambda key: key.created_at, reverse=True)
    terminal.show(keys_table(found), {"keys": found})


@keys.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Its id, such as key_01k...")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a key good for nothing, from the next request on."""
    house = _House(home)
    key = house.account(house.tenants.holder_of(key_id)).revoke_key(key_id)
    document = KeyDocument(**asdict(key))
    Terminal(as_json=as_json).show(f"{key.id} ({key.name}) of {key.tenant} is revoked", document)


@tenants.command("create")
def create_tenant(name: TenantName, home: Home = None, as_json: Json = False) -> None:
    """Make a tenant. One that is there already stays as it is."""
    terminal = Terminal(as_json=as_json)
    house = _House(home)
    _, new = house.tenants.create(name)
    terminal.show(f"{name} {'is made' if new else 'is there already'}", house.usage(name))
    terminal.hint("make it a key", f"stillhouse keys create --tenant {name} --scope submit")


@tenants.command("list")
def list_tenants(home: Home = None, as_json: Json = False) -> None:
    """List tenants with what they use and may use."""
    house = _House(home)
    found = [house.usage(tenant.name) for tenant in house.tenants.tenants()]
    Terminal(as_json=as_json).show(tenants_table(found), {"tenants": found})


_Limit = Annotated[str | None, typer.Option(metavar="N|none")]


@tenants.command("limits")
def limit_tenant(
    name: TenantName,
    queued_jobs: _Limit = None,
    concurrent_trials: _Limit = None,
    cpu_seconds_per_day: _Limit = None,
    gpu_seconds_per_day: _Limit = None,
    stored_bytes: _Limit = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Set what a tenant may use; what is not named stays as it is."""
    given = {
        Quota.QUEUED_JOBS: queued_jobs,
        Quota.CONCURRENT_TRIALS: concurrent_trials,
        Quota.CPU_SECONDS_PER_DAY: cpu_seconds_per_day,
        Quota.GPU_SECONDS_PER_DAY: gpu_seconds_per_day,
        Quota.STORED_BYTES: stored_bytes,
    }
    limits = {quota: _limit(quota, text) for quota, text in given.items() if text is not None}
    house = _House(home)
    house.tenants.limit(name, limits)
    usage = house.usage(name)
    Terminal(as_json=as_json).show(tenants_table([usage]), usage)


_ALL = 1_000_000


class _House:
    """The record behind the settings, opened by hand."""

    def __init__(self, home: Path | None) -> None:
        from service.store.accounts import SqlTenants
        from service.store.engine import ready

        settings = read_settings(home=home)
        self._engine: Any = ready(settings.database_url, shown=settings.database)
        self._actor = f"shell:{_who()}"
        self.tenants: SqlTenants = SqlTenants(self._engine, self._actor)

    def account(self, tenant: str) -> SqlAccount:
        from service.store.accounts import SqlAccount

        return SqlAccount(self._engine, Caller(tenant, self._actor, Scope.ADMIN))

    def usage(self, tenant: str) -> Usage:
        shares = self.account(tenant).usage().items()
        return Usage(tenant=tenant, quotas={quota: QuotaUse(**asdict(share)) for quota, share in shares})


def _who() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return str(os.getuid())


def _seconds(text: str) -> int:
    found = _LIFE.fullmatch(text)
    seconds = int(found[1]) * _UNITS[found[2]] if found else 0
    if not 0 < seconds <= LONGEST_LIFE:
        raise UserError(f"--expires {text}: write a number and a unit, such as 90d or 12h; at most 10 years")
    return seconds


def _limit(quota: Quota, text: str) -> int | None:
    if text == _NONE:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        option = f"--{quota.replace('_', '-')}"
        raise UserError(f"{option} {text[:64]}: write a whole number, or `{_NONE}` for as much as there is")
    return int(text)
