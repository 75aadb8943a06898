"""Checks of this machine: each one tried, not guessed, and each with what to do when it fails."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from search.errors import StillhouseError
from service.client import Client
from service.screens.words import Signs, size
from service.settings import Settings, read_settings

LEAST_DISK = 5 * 10**9
"""Bytes; artifacts and caches of a few jobs."""
LEAST_SHARED = 10**9
"""Bytes of /dev/shm, where Ray keeps what its workers share."""


class Finding(BaseModel):
    """`bad` keeps jobs from working, `note` is worth knowing; `fix` is empty when all is well."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: Literal["ok", "note", "bad"]
    detail: str
    fix: str = ""


def examine(*, home: Path | None = None, deep: bool = False) -> list[Finding]:
    """Every check, in order. A check that breaks is itself a finding."""
    try:
        settings = read_settings(home=home)
    except StillhouseError as error:
        return [Finding(name="settings", state="bad", detail=error.message, fix="correct the variable, then try again")]
    checks: list[tuple[str, Callable[[Settings], Finding]]] = [
        ("python", _python),
        ("torch", _torch),
        ("ray", _ray_started if deep else _ray),
        ("home", _home),
        ("disk", _disk),
        ("shared memory", _shared),
        ("database", _database),
        ("port", _port),
        ("server", _server),
    ]
    return [_tried(name, check, settings) for name, check in checks]


def findings_table(findings: Sequence[Finding], signs: Signs) -> RenderableType:
    looks = {"ok": (signs.tick, "green"), "note": ("!", "yellow"), "bad": (signs.cross, "bold red")}
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        said = Text(finding.detail)
        if finding.fix:
            said.append(f"\n{signs.arrow} {finding.fix}", "cyan")
        table.add_row(Text(*looks[finding.state]), finding.name, said)
    return Padding(table, (1, 2))


def _tried(name: str, check: Callable[[Settings], Finding], settings: Settings) -> Finding:
    try:
        return check(settings)
    except Exception as error:
        return Finding(name=name, state="bad", detail=f"{type(error).__name__}: {error}", fix="see the message")


def _python(_: Settings) -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    return Finding(name="python", state="ok", detail=f"{found}, {os.cpu_count()} processors")


_CONVOLVE = """
import torch, torchvision
answer = torch.nn.Conv2d(3, 4, 3)(torch.ones(1, 3, 8, 8))
assert answer.shape == (1, 4, 6, 6) and bool(answer.isfinite().all())
torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, "
      f"{torch.cuda.device_count() or 'no'} CUDA device(s)")
"""


def _torch(_: Settings) -> Finding:
    """In a process of its own: a torch and a torchvision that do not fit may take the process down."""
    said = _python_says(_CONVOLVE, seconds=120)
    if said.returncode != 0:
        return Finding(
            name="torch",
            state="bad",
            detail=_last_line(said.stderr) or f"ended with code {said.returncode}",
            fix="install a fitting pair: pip install --force-reinstall torch torchvision -c constraints.txt",
        )
    return Finding(name="torch", state="ok", detail=said.stdout.strip())


def _ray(_: Settings) -> Finding:
    return _ray_says("import ray; print(f'ray {ray.__version__}')", _INSTALL_RAY, seconds=60)


_USE_RAY = """
from service.drive import make_backend
from service.settings import read_settings
settings = read_settings()
where = "started here" if settings.ray_address == "local" else f"the cluster at {settings.ray_address}"
backend = make_backend("ray", settings.ray_address, settings.ray_token_file)
def answers(item):
    yield item * 7
found = list(backend.map(answers, [6], cpus=1, gpus=0, stopping=lambda: False))
backend.close()
assert found == [(0, 42)], found
import ray
print(f"ray {ray.__version__}, {where}, did some work")
"""

_RAY_SECONDS = 90.0
_INTRUDE = "import ray; ray.init(address={address!r}, logging_level='CRITICAL', log_to_driver=False)"


def _ray_started(settings: Settings) -> Finding:
    """Has it work, and tries whether a cluster would do so for somebody who shows no token."""
    settings.check_cluster()
    local = settings.ray_address == "local"
    fix = _INSTALL_RAY if local else f"see that {settings.ray_address} is its address, that it runs, {_A_NODE}"
    found = _ray_says(_USE_RAY, fix, seconds=_RAY_SECONDS, environment=settings.environment())
    if found.state == "bad" or local:
        return found
    intruding = _INTRUDE.format(address=settings.ray_address)
    if _python_says(intruding, seconds=_RAY_SECONDS, environment={"RAY_AUTH_MODE": "disabled"}).returncode == 0:
        return Finding(
            name="ray",
            state="bad",
            detail=f"the cluster at {settings.ray_address} works for whoever reaches its ports",
            fix="start its nodes with RAY_AUTH_MODE=token, and see that only our machines reach them",
        )
    return found


_INSTALL_RAY = "pip install 'ray[tune]' -c constraints.txt, or work without it: STILLHOUSE_BACKEND=inline"
_A_NODE = (
    "that this machine is one of its nodes, if only one with --num-cpus=0, that STILLHOUSE_RAY_TOKEN_FILE holds its "
    "token, and that its Python and ray are of the same versions"
)


def _ray_says(program: str, fix: str, *, seconds: float, environment: Mapping[str, str] | None = None) -> Finding:
    said = _python_says(program, seconds=seconds, environment=environment)
    if said.returncode != 0:
        return Finding(
            name="ray",
            state="bad",
            detail=_last_line(said.stderr) or f"ended with code {said.returncode}",
            fix=fix,
        )
    return Finding(name="ray", state="ok", detail=said.stdout.strip().splitlines()[-1])


def _home(settings: Settings) -> Finding:
    try:
        settings.home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.home) as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(
            name="home",
            state="bad",
            detail=f"{settings.home} cannot be written: {error.strerror}",
            fix="set STILLHOUSE_HOME to a folder that you may write",
        )
    return Finding(name="home", state="ok", detail=str(settings.home))


def _disk(settings: Settings) -> Finding:
    place = next(folder for folder in (settings.home, *settings.home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    detail = f"{size(free)} free at {place}"
    if free < LEAST_DISK:
        fix = f"free some space, or set STILLHOUSE_HOME to a disk with {size(LEAST_DISK)}"
        return Finding(name="disk", state="note", detail=detail, fix=fix)
    return Finding(name="disk", state="ok", detail=detail)


def _shared(_: Settings) -> Finding:
    folder = Path("/dev/shm")  # noqa: S108 - its size is what is asked
    if not folder.exists():
        return Finding(name="shared memory", state="ok", detail="not limited on this system")
    total = shutil.disk_usage(folder).total
    if total < LEAST_SHARED:
        return Finding(
            name="shared memory",
            state="note",
            detail=f"{size(total)} in {folder}: Ray will use slow files instead",
            fix="in a container: docker run --shm-size=2g",
        )
    return Finding(name="shared memory", state="ok", detail=f"{size(total)} in {folder}")


def _database(settings: Settings) -> Finding:
    from service.store.engine import connect, current_revision, latest_revision, migrate
    from service.store.values import suits

    with tempfile.TemporaryDirectory() as folder:
        migrate(connect(f"sqlite:///{folder}/trial.db"))
    if settings.embedded and not Path(settings.database_url.removeprefix("sqlite:///")).exists():
        return Finding(name="database", state="ok", detail="tables can be made; none yet")
    revision, latest = current_revision(connect(settings.database_url)), latest_revision()
    if revision == latest:
        return Finding(name="database", state="ok", detail=f"{settings.database} at revision {revision}")
    detail = f"{settings.database} is at revision {revision}, this program works with {latest}"
    newer = "finish the upgrade: a newer version has migrated this database"
    older = "stillhouse migrate (`stillhouse serve` does it by itself)"
    return Finding(name="database", state="note", detail=detail, fix=newer if suits(revision, latest) else older)


def _port(settings: Settings) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            with Client(f"http://{settings.host}:{settings.port}") as client:
                if client.ready():
                    return Finding(name="port", state="ok", detail=f"{settings.port} is held by a Stillhouse server")
            return Finding(
                name="port",
                state="bad",
                detail=f"{settings.host}:{settings.port} cannot be used: {error.strerror}",
                fix="set STILLHOUSE_PORT to another one (0 takes any that is free)",
            )
    return Finding(name="port", state="ok", detail=f"{settings.host}:{settings.port} is free")


def _server(_: Settings) -> Finding:
    with Client() as client:
        if client.ready():
            return Finding(name="server", state="ok", detail=f"{client.url} answers")
        asked = bool(os.environ.get("STILLHOUSE_URL"))
        return Finding(
            name="server",
            state="bad" if asked else "note",
            detail=f"none answers at {client.url}",
            fix="check STILLHOUSE_URL" if asked else "start one when you need it: stillhouse serve",
        )


_LATE = 124  # as `timeout` has it


def _python_says(
    program: str, *, seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "ignore", "-c", program]
    try:
        return subprocess.run(  # noqa: S603 - programs of our own, above
            command,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env=os.environ | (environment or {}),
        )
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, _LATE, "", f"no answer within {seconds:g} s")


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
