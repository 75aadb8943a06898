"""The demonstration: a server of its own, one job over HTTP, its student on disk, and nothing left running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from search.errors import StillhouseError
from service import latchkey
from service.board import Board
from service.client import Client
from service.screens.result import PLOTTED, result_screen, shown_path
from service.settings import PREFIX, Settings
from service.takehome import check_place
from service.terminal import Exit, Terminal
from workers.ports import JobState

JOB: Mapping[str, Any] = {
    "version": 1,
    "teacher": {"name": "small_resnet", "options": {"depth": 2, "width": 16}, "epochs": 8},
    "dataset": {"name": "digits"},
    "budget": {"macs": "25%", "params": "30%"},
    "space": {"divisor": 2},
    "search": {"trials": 12, "rungs": [30, 90]},
    "finalists": {"count": 2, "steps": 200, "checkpoint_every": 100},
    "labels": {"example": "quickstart"},
}
"""The same as `examples/quickstart.yaml`, which an installed package does not have."""

READY_SECONDS = 60.0
STOP_SECONDS = 20.0


class ServerFailed(StillhouseError):
    """The server of the demonstration did not come up."""

    code = "SERVER_FAILED"


def demonstrate(terminal: Terminal, *, home: Path, out: Path, document: Mapping[str, Any] | None = None) -> Exit:
    """
    Runs the job that `document` describes, or the built-in one, from nothing to a student in `out`.

    Raises:
        ServerFailed: the message names the log and quotes its end.
        UserError: `out` holds something other than an earlier student.
    """
    check_place(out)
    home = home.absolute()
    for ending in (signal.SIGTERM, signal.SIGHUP):  # whoever stops us, or closes the window, leaves no server behind
        signal.signal(ending, signal.default_int_handler)
    with _server(home, terminal) as url, Client(url, latchkey.kept_in(home)) as client:
        with terminal.waiting("the server is checking the job"):
            job = client.jobs.create(JOB if document is None else document)
        board = Board(job.id, job.spec)
        try:
            with terminal.following(board) as take:
                for event in client.jobs.stream(job.id):
                    take(event)
        except KeyboardInterrupt:
            terminal.say("Interrupted: cancelling the job and stopping the server.", "bold")
            client.jobs.cancel(job.id)
            return Exit.DETACHED
        job = client.jobs.get(job.id)
        folder = out if job.state is JobState.SUCCEEDED else None
        if folder is not None:
            with terminal.transferring("student") as told:
                client.jobs.pull(job.id, folder, on_bytes=told)
        width, signs = terminal.out.width, terminal.signs
        terminal.show(result_screen(job, board.points(PLOTTED), width=width, signs=signs, folder=folder), job)
        if folder is None:
            terminal.hint("more in the log", shown_path(home / "logs" / f"{job.id}.log"))
            return Exit.JOB_FAILED
    terminal.hint("on your own data", "stillhouse serve, then stillhouse submit examples/image_folder.yaml")
    return Exit.OK


@contextmanager
def _server(home: Path, terminal: Terminal) -> Iterator[str]:
    """The address of a server with embedded defaults and its state in `home`; it is stopped at the end."""
    log = home / "logs" / "server.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    environment |= {f"{PREFIX}HOME": str(home), f"{PREFIX}HOST": "127.0.0.1", f"{PREFIX}PORT": str(port)}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            # Ctrl+C is for us: we cancel the job first and stop the server then.
            start_new_session=True,
        )
    try:
        with terminal.waiting("starting a server (SQLite, Ray on this machine)"):
            _until_ready(process, url, log)
        terminal.say(f"server {url}, state in {shown_path(home)}", "dim")
        yield url
    finally:
        _stop(process)


def _until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    with Client(url) as client:
        while not client.ready():
            if process.poll() is not None:
                raise ServerFailed(f"the server ended with code {process.returncode}. {_end_of(log)}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"the server was not ready within {READY_SECONDS:.0f} s. {_end_of(log)}")
            time.sleep(0.1)


def _end_of(log: Path, lines: int = 12) -> str:
    text = log.read_text(errors="replace").strip().splitlines()
    return f"Its log, {shown_path(log)}, ends:\n" + "\n".join(text[-lines:] or ["(nothing)"])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    """The usual port, or any other when that one is taken."""
    usual = int(Settings.model_fields["port"].default)
    for port in (usual, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerFailed("no port is free on this machine")
