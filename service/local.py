"""
`stillhouse local`: the same job without a server, in this process, with the record in memory.

What costs time is kept in `home` all the same: the teacher and its outputs serve the next job, local or not.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from search.spec import JobSpec
from service.documents import JobDocument, job_document
from service.drive import THREADS, make_backend
from workers.events import Event

OWNER = "local"
_LIFETIME_SECONDS = 3.0e8


def run_local(
    spec: JobSpec, out: Path, *, backend: Literal["inline", "ray"], home: Path, on_event: Callable[[Event], None]
) -> JobDocument:
    """
    Drives the job to its end, writes the student to `out`, and returns the job document.

    `on_event` is called for every event as it is recorded, from this thread. An earlier student in `out` is replaced.

    Raises:
        UserError: the spec asks for what cannot be done; nothing was trained.
    """
    os.environ.update({"OMP_WAIT_POLICY": THREADS["OMP_WAIT_POLICY"]})
    # Imported here, because the command line must answer `--help` without loading torch.
    from search.files import Files
    from search.recipe import prepare
    from workers.artifacts import FolderArtifacts
    from workers.driver import Driver
    from workers.memory import MemoryLedger

    files = Files(cache=home / "cache", roots=None)
    prepare(spec, files).plan()
    ledger = MemoryLedger(on_event=lambda _, event: on_event(event))
    artifacts = FolderArtifacts(str(home / "artifacts"))
    ledger.submit(spec)
    claim = ledger.claim(OWNER, lease_seconds=_LIFETIME_SECONDS)
    assert claim is not None  # noqa: S101 - submitted above, and nobody else knows this ledger
    engine = make_backend(backend, "local")
    try:
        Driver(claim, ledger, artifacts, engine, files, _Undisturbed()).drive()
    finally:
        engine.close()
    record = ledger.job(claim.job_id)
    if any(stored.name.startswith("student/") for stored in record.files):
        _write(out, {Path(stored.name).name: artifacts.get(stored.artifact.key) for stored in record.files})
    return job_document(record, ledger.trials(claim.job_id))


class _Undisturbed:
    """A watch for a job that nobody else can cancel or claim; Ctrl+C ends the process."""

    def stopping(self) -> bool:
        return False

    def alive(self) -> None:
        """Nobody watches."""


def _write(out: Path, contents: dict[str, bytes]) -> None:
    """The whole folder appears at once or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".student-", dir=out.parent))
    for name, content in contents.items():
        (fresh / name).write_bytes(content)
    fresh.chmod(0o755)
    if out.exists():
        shutil.rmtree(out)
    fresh.rename(out)
