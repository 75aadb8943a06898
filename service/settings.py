"""
What an operator decides: `Settings`, from `STILLHOUSE_*` variables.

Read once, by the command line, and handed on. Whoever needs a value is given it; nobody looks it up.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, StringConstraints, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from search.errors import FieldError, InvalidSpec
from service.store.values import Scope

PREFIX = "STILLHOUSE_"
SHORTEST_KEY = 16
"""Characters. What can be guessed in an afternoon is no key."""

_PASSWORD = re.compile(r"(?<=://)(?P<user>[^:/@]*):(?P<password>[^@]*)(?=@)")


class InvalidSettings(InvalidSpec):
    """A variable or an option has a value that cannot be used; pointers are field names of `Settings`."""

    code = "INVALID_SETTINGS"


def _separated(separator: str) -> Callable[[Any], Any]:
    def split(value: Any) -> Any:
        return [part.strip() for part in value.split(separator) if part.strip()] if isinstance(value, str) else value

    return split


def _pairs(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {word.strip(): meant.strip() for part in value.split(",") for word, _, meant in [part.rpartition("=")]}


def _expanded(path: Any) -> Any:
    return Path(path).expanduser().absolute() if isinstance(path, (str, Path)) else path


Folder = Annotated[Path, BeforeValidator(_expanded)]
Host = Annotated[str, StringConstraints(pattern=r"^(?:(?:\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])$")]
"""A name, with `*.` for all below it, or an address; neither a scheme nor a port."""


def _database_in(known: dict[str, Any]) -> str:
    return f"sqlite:///{known['home'] / 'stillhouse.db'}"


def _artifacts_in(known: dict[str, Any]) -> str:
    return str(known["home"] / "artifacts")


class Settings(BaseSettings):
    """Every field is also a variable, such as `STILLHOUSE_PORT`. Secrets are left out of its text."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )

    home: Folder = Field(default=Path("~/.stillhouse"), validate_default=True)
    """Where everything lies that is not said to lie elsewhere: database, artifacts, cache, logs."""
    database_url: str = Field(default_factory=_database_in, repr=False)
    """SQLAlchemy's form, such as `postgresql+psycopg://user:password@host/name`; SQLite in `home` by default."""
    artifacts: str = Field(default_factory=_artifacts_in, min_length=1, repr=False)
    """A folder, or a URI such as `s3://bucket/prefix?region=eu-central-1`; a folder in `home` by default."""
    data_roots: Annotated[tuple[Folder, ...], NoDecode, BeforeValidator(_separated(os.pathsep))] = ()
    """Folders below which paths in a job must lie, separated as in PATH."""

    host: str = Field("127.0.0.1", min_length=1)
    port: int = Field(8431, ge=0, le=65535)
    """0 takes a free one."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_separated(","))] = (
        "localhost",
        "127.0.0.1",
        "[::1]",
    )
    """Names by which clients may address this server, separated by commas; `*.example.org` takes all below it."""
    auth: Literal["keys", "off"] = "keys"
    """`off` asks nobody for a key and makes everybody an admin of the tenant `default`; only loopback allows that."""
    api_key_file: Folder | None = None
    """A file that holds the key, for those who mount secrets."""
    api_key: SecretStr | None = None
    """A key beside those on record: an admin's, of the tenant `default`."""
    oidc_issuer: str | None = None
    """An identity provider whose tokens are taken beside keys, as its discovery document writes it: `https://...`."""
    oidc_audience: str | None = None
    """What such a token must name as its audience."""
    oidc_tenant_claim: str = Field("tenant", min_length=1)
    """The claim that holds the name of a tenant which there is."""
    oidc_scope_claim: str = Field("scope", min_length=1)
    """The claim that holds words for scopes, in a list or separated by blanks."""
    oidc_scopes: Annotated[dict[str, Scope], NoDecode, BeforeValidator(_pairs)] = Field(
        default={f"stillhouse:{scope}": scope for scope in Scope}
    )
    """Which words stand for which scope: `word=read,word=submit,...`."""
    key_rate: float = Field(500.0, gt=0, le=1_000_000, allow_inf_nan=False)
    """Requests a second that one key may make of one process, and go on making."""
    key_burst: int = Field(1000, ge=1, le=1_000_000)
    """Requests that one key may make at once."""
    event_streams: int = Field(64, ge=1, le=10_000)
    """How many live event streams one process keeps open at a time."""
    key_streams: int = Field(10, ge=1, le=10_000)
    """How many of those one key may have."""
    webhook_hosts: Annotated[tuple[Host, ...], NoDecode, BeforeValidator(_separated(","))] = ()
    """Hosts that webhooks may be sent to, separated by commas; `*.example.org` takes all below it. None by default."""
    webhook_insecure: bool = False
    """Lets webhooks go to private addresses, and to this machine without TLS. For trying things out, never for use."""
    request_seconds: float = Field(30.0, gt=0, le=3600)
    """Longest time the head of a request may take to come, and as much again for a body below 16 KiB a second."""
    check_seconds: float = Field(60.0, gt=0, le=600)
    """Longest time a submitted job may take to be checked."""

    upload_bytes: int = Field(2 * 2**30, ge=1, le=2**40)
    """Largest file that users may upload."""

    backend: Literal["ray", "inline"] = "ray"
    ray_address: str = "local"
    """`local` starts Ray on this machine; else the address of a cluster."""
    ray_token_file: Path | None = None
    """Where the cluster's token is: whoever reaches Ray's ports without one being asked for can run programs there."""
    concurrent_jobs: int = Field(1, ge=1, le=1000)
    lease_seconds: float = Field(30.0, ge=1, le=3600)
    """How long a job stays with a driver that has gone silent."""
    stall_seconds: float = Field(900.0, ge=10)
    """How long a driver may show no progress before it gives its job back."""
    database_pool: int = Field(16, ge=2, le=1000)
    """Connections to the database that one API or dispatcher may have; a driver has at most 4."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Where figures for Prometheus are had without a key; nowhere by default. APIs have `/metrics` besides."""
    metrics_host: str = Field("127.0.0.1", min_length=1)
    traces: str | None = Field(None, pattern=r"^https?://[^\s]+$", repr=False)
    """An OpenTelemetry collector, as OTLP over HTTP: `http://localhost:4318/v1/traces`. Needs the extra `otel`."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = "text"
    """`json` writes one object a line, with the ids of request, tenant, job and trial where they are known."""

    def environment(self) -> dict[str, str]:
        """
        Variables that make an equal `Settings` in a driver process, but for the key, which a driver has no use for.
        """
        return {
            f"{PREFIX}HOME": str(self.home),
            f"{PREFIX}DATABASE_URL": self.database_url,
            f"{PREFIX}ARTIFACTS": self.artifacts,
            f"{PREFIX}DATA_ROOTS": os.pathsep.join(map(str, self.data_roots)),
            f"{PREFIX}BACKEND": self.backend,
            f"{PREFIX}RAY_ADDRESS": self.ray_address,
            f"{PREFIX}RAY_TOKEN_FILE": str(self.ray_token_file or ""),
            f"{PREFIX}LEASE_SECONDS": str(self.lease_seconds),
            f"{PREFIX}STALL_SECONDS": str(self.stall_seconds),
            f"{PREFIX}LOG_LEVEL": self.log_level,
            f"{PREFIX}LOG_FORMAT": self.log_format,
            f"{PREFIX}TRACES": self.traces or "",
            f"{PREFIX}API_KEY": "",
            f"{PREFIX}API_KEY_FILE": "",
        }

    @property
    def database(self) -> str:
        """The database's address as it may be shown: without its password."""
        return _PASSWORD.sub(r"\g<user>:***", self.database_url)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen in a log, and could not be told from other words by its looks."""
        password = _PASSWORD.search(self.database_url)
        key = "" if self.api_key is None else self.api_key.get_secret_value()
        return tuple(filter(None, (key, password and password["password"])))

    @property
    def embedded(self) -> bool:
        """Whether the database is a file of this machine, so that one process alone may serve it."""
        return self.database_url.startswith("sqlite")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return _is_loopback(self.host)

    def check_binding(self, *, keys: bool = False) -> None:
        """
        Refuses to be reachable from elsewhere without a key; `keys` says whether there are any on record.

        Raises:
            InvalidSettings: `host` is not a loopback address and nobody is asked for a key, or there is none; a key or
                an identity provider is not to be trusted.
        """
        if not self.loopback and self.auth == "off":
            raise _mistake(
                "auth",
                f"it is `off`, and `{self.host}` can be reached from other machines: whoever reaches this server could "
                f"use it. Leave {PREFIX}AUTH out, or listen on 127.0.0.1",
            )
        if self.oidc_issuer is not None:
            self._check_issuer(self.oidc_issuer)
        if not self.loopback and self.api_key is None and self.oidc_issuer is None and not keys:
            raise _mistake(
                "host",
                f"`{self.host}` can be reached from other machines, and there is no key yet; set {PREFIX}API_KEY_FILE "
                f"or {PREFIX}API_KEY, make one with `stillhouse keys create`, or listen on 127.0.0.1",
            )
        if self.api_key is not None and len(self.api_key.get_secret_value()) < SHORTEST_KEY:
            raise _mistake(
                "api_key", f"it has fewer than {SHORTEST_KEY} characters; make one with `openssl rand -base64 32`"
            )

    def check_cluster(self) -> None:
        """
        Refuses to work on a Ray cluster that nobody has to show a token to.

        Raises:
            InvalidSettings: no token is named, or its file cannot be read; RAY_AUTH_MODE=disabled says that none is
                wanted.
        """
        if self.backend != "ray" or self.ray_address == "local" or os.environ.get("RAY_AUTH_MODE") == "disabled":
            return
        if self.ray_token_file is None:
            raise _mistake(
                "ray_token_file",
                f"name the file with the token of the Ray cluster at {self.ray_address}: a cluster whose nodes are "
                "started with RAY_AUTH_MODE=token asks for one, any other runs the programs of whoever reaches its "
                "ports. Where its network keeps everybody else out, set RAY_AUTH_MODE=disabled",
            )
        if not _text_in(self.ray_token_file, "ray_token_file"):
            raise _mistake("ray_token_file", f"the file {self.ray_token_file} is empty; put the cluster's token there")

    def _check_issuer(self, issuer: str) -> None:
        address = urlsplit(issuer)
        if address.scheme != "https" and not (address.scheme == "http" and _is_loopback(address.hostname or "")):
            raise _mistake("oidc_issuer", "it must begin with https://, or anybody could answer in its place")
        if not self.oidc_audience:
            raise _mistake(
                "oidc_audience", "name the audience of tokens for this server, or it would take those of any"
            )


def read_settings(**given: Any) -> Settings:
    """
    Settings from the environment; what is `given` goes before it, and a None among that counts as not given.

    Raises:
        InvalidSettings: a value cannot be used; the message names its variable.
    """
    try:
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise InvalidSettings([_field_error(found) for found in error.errors() if found["type"] != _FOLLOWS]) from None
    if settings.api_key is None and settings.api_key_file is not None:
        return settings.model_copy(update={"api_key": SecretStr(_text_in(settings.api_key_file, "api_key_file"))})
    return settings


_FOLLOWS = "default_factory_not_called"
"""pydantic's word for a default that another field's mistake kept it from working out."""


def _text_in(file: Path, setting: str) -> str:
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise _mistake(setting, f"the file {file} cannot be read; check its path and permissions") from None


def _field_error(found: Any) -> FieldError:
    name = str(found["loc"][0]) if found["loc"] else ""
    message = str(found["msg"]).removeprefix("Value error, ")
    return _finding(name, f"{message[:1].lower()}{message[1:]}")


def _finding(name: str, message: str) -> FieldError:
    return FieldError(f"/{name}", InvalidSettings.code, f"{PREFIX}{name.upper()}: {message}")


def _mistake(name: str, message: str) -> InvalidSettings:
    return InvalidSettings([_finding(name, message)])


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
