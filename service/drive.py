"""
The driver process: `python -m service.drive`, started by a dispatcher with a claim on its standard input.

It joins the ports of `workers` to this machine's database, artifacts and engine, and has no other duty.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.journal import Redaction, open_journal
from service.settings import Settings, read_settings
from workers.ports import Claim

THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""
For drivers and the workers below them; read when torch is imported. Threads that wait by spinning made a two-thread
training step 15 times slower where another process wanted the same two cores (docs/decisions/0001).
"""

EXIT_LOST = 75
"""The lease is gone or the work hangs: someone else shall go on."""


class Launcher:
    """Starts a driver process for a claim; its output goes to a file of the job in `home/logs`."""

    def __init__(self, settings: Settings) -> None:
        self._logs = settings.home / "logs"
        self._environment = os.environ | settings.environment() | THREADS

    def __call__(self, claim: Claim) -> subprocess.Popen[bytes]:
        self._logs.mkdir(parents=True, exist_ok=True)
        with log_of(self._logs, claim.job_id).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.drive"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                # Survives the death of whoever started it: its lease is its own.
                start_new_session=True,
            )
        assert process.stdin is not None  # noqa: S101 - asked for above
        with process.stdin:
            process.stdin.write(json.dumps(asdict(claim)).encode())
        return process


def log_of(folder: Path, job_id: str) -> Path:
    return folder / f"{job_id}.log"


def main() -> None:
    claim = Claim(**json.load(sys.stdin))
    settings = read_settings()
    open_journal(settings.log_format, settings.log_level, secrets=settings.secrets, job_id=claim.job_id)
    _drive(claim, settings)


def _drive(claim: Claim, settings: Settings) -> None:
    # Imported here, so that the process that launches drivers does not load torch.
    from search.files import Files
    from service.store.engine import connect
    from service.store.ledger import SqlLedger
    from service.traces import JobSpans, TracedLedger, open_traces
    from workers.artifacts import FolderArtifacts
    from workers.driver import Driver
    from workers.heartbeat import Heartbeat
    from workers.logbook import Logbook
    from workers.uploads import Uploaded

    engine, artifacts = connect(settings.database_url, pool=4), FolderArtifacts(settings.artifacts)
    files = Files(cache=settings.home / "cache", roots=settings.data_roots, uploads=Uploaded(artifacts))
    with ExitStack() as stack:
        ledger = SqlLedger(engine)
        if (traces := open_traces(settings, "driver")) is not None:
            spans = stack.enter_context(JobSpans(stack.enter_context(traces), claim))
            ledger = TracedLedger(engine, spans)
        heartbeat = Heartbeat(
            ledger,
            claim,
            lease_seconds=settings.lease_seconds,
            stall_seconds=settings.stall_seconds,
            lost=_leave,
        )
        stack.enter_context(heartbeat)
        logbook = Logbook(ledger, claim)
        logbook.addFilter(Redaction(settings.secrets))
        stack.enter_context(logbook)
        backend = make_backend(settings.backend, settings.ray_address, settings.ray_token_file)
        try:
            Driver(claim, ledger, artifacts, backend, files, heartbeat).drive()
        finally:
            backend.close()


def make_backend(name: str, ray_address: str = "local", ray_token_file: Path | None = None) -> Any:
    """The engine by its name: `inline` or `ray`; only the one asked for is imported. Raises as `RayBackend` does."""
    if name == "inline":
        from workers.backends.inline import InlineBackend

        return InlineBackend()
    from workers.backends.ray import RayBackend

    return RayBackend(ray_address, token_file=ray_token_file)


def _leave(reason: str) -> None:
    logging.getLogger("stillhouse.drive").critical("leaving: %s", reason)
    logging.shutdown()
    os._exit(EXIT_LOST)


if __name__ == "__main__":
    main()
