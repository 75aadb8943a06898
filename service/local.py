"""
`stillhouse local`: the same job without a server, in this process, with the record in memory.

What costs time is kept in `home` all the same: the teacher and its outputs serve the next job, local or not.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from search.spec import JobSpec
from service.documents import JobDocument, job_document
from service.drive import THREADS, make_backend
from service.takehome import check_place, placing, student_file
from workers.events import Event
from workers.ports import Wish
from workers.standings import standing_of

OWNER = "local"
_LIFETIME_SECONDS = 3.0e8


def run_local(
    spec: JobSpec, out: Path, *, backend: Literal["inline", "ray"], home: Path, on_event: Callable[[Event], None]
) -> JobDocument:
    """
    Drives the job to its end, writes the student to `out`, and returns the job document.

    `on_event` is called for every event as it is recorded, from this thread. The students of a ladder go to folders
    below `out`, one a level. Earlier students in `out` are replaced.

    Raises:
        UserError: the spec asks for what cannot be done, or `out` holds something else; nothing was trained.
    """
    os.environ.update({"OMP_WAIT_POLICY": THREADS["OMP_WAIT_POLICY"]})
    # Imported here, because the command line must answer `--help` without loading torch.
    from search.files import Files
    from search.recipe import prepare
    from workers.artifacts import FolderArtifacts
    from workers.driver import Driver
    from workers.memory import MemoryLedger

    check_place(out)
    files = Files(cache=home / "cache", roots=None)
    prepare(spec, files).check()
    ledger = MemoryLedger(on_event=lambda _, event: on_event(event))
    artifacts = FolderArtifacts(str(home / "artifacts"))
    ledger.submit(spec)
    claim = ledger.claim(OWNER, lease_seconds=_LIFETIME_SECONDS)
    assert claim is not None  # noqa: S101 - submitted above, and nobody else knows this ledger
    engine = make_backend(backend)
    try:
        Driver(claim, ledger, artifacts, engine, files, _Undisturbed()).drive()
    finally:
        engine.close()
    record = ledger.job(claim.job_id)
    students = [(stored, place) for stored in record.files if (place := student_file(stored.name)) is not None]
    if students:
        with placing(out) as folder:
            for stored, (level, name) in students:
                (folder / level).mkdir(exist_ok=True)
                (folder / level / name).write_bytes(artifacts.get(stored.artifact.key))
    return job_document(record, standing_of(ledger.trials(claim.job_id)))


class _Undisturbed:
    """A watch for a job that nobody else can cancel or claim; Ctrl+C ends the process."""

    def stopping(self) -> bool:
        return False

    def wish(self) -> Wish:
        return Wish.GO_ON

    def alive(self) -> None:
        """Nobody watches."""
