"""One version of the program as processes of its own: what runs is its tree, on the interpreter that runs the tests."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx2
import pytest

from benchmarks.served import AUTHORIZED, KEY

ROOT = Path(__file__).parents[2]


def at_commit(commit: str, folder: Path) -> Path:
    """
    `folder`, with the program as it was then. The test is skipped where history does not reach as far: in an archive
    of the source, or a shallow clone.
    """
    if shutil.which("git") is None:
        pytest.skip("an earlier version is had by git, which is missing")
    command = ["git", "-C", str(ROOT), "archive", commit, "search", "workers", "service"]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"an earlier version is not in the history that is here: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def drivers(home: Path) -> list[tuple[str, int]]:
    """The job and the process of each driver that is there, whoever started it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it is another's, or gone by now
            log, pid = (process / "fd" / "1").readlink(), int(process.name)
            if log.parent == home / "logs" and os.getpgid(pid) == pid:
                found.append((log.stem, pid))
    return found


class Server:
    """An API or a dispatcher that was started a moment ago."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def end(self) -> int:
        """The exit code after SIGTERM."""
        self.process.terminate()
        return self.process.wait(30)


class Api(Server):
    @cached_property
    def http(self) -> httpx2.Client:
        """Waits until it answers."""
        assert self.process.stdout is not None
        said = "".join(itertools.takewhile(lambda line: line != "}\n", self.process.stdout))
        return httpx2.Client(base_url=json.loads(said + "}")["url"], headers=AUTHORIZED, timeout=60)

    def get(self, path: str, **parameters: str) -> Any:
        return _document(self.http.get(path, params=parameters))

    def submit(self, document: dict[str, Any], key: str | None = None) -> str:
        """The job's id."""
        headers = {} if key is None else {"Idempotency-Key": key}
        return str(_document(self.http.post("/v1/jobs", json=document, headers=headers))["id"])

    def cancel(self, job: str) -> None:
        _document(self.http.post(f"/v1/jobs/{job}:cancel"))


def _document(answer: httpx2.Response) -> Any:
    assert answer.is_success, answer.text
    return answer.json()


@dataclass(frozen=True)
class Version:
    tree: Path
    database_url: str
    home: Path
    log: Path
    """What its servers say besides."""

    def migrate(self) -> None:
        with self._started("migrate") as process:
            assert process.wait(60) == 0, self.log.read_text()

    @contextmanager
    def api(self) -> Iterator[Api]:
        with self._started("api", "--port", "0", "--json") as process:
            api = Api(process)
            try:
                yield api
            finally:
                if "http" in vars(api):
                    api.http.close()

    @contextmanager
    def dispatcher(self) -> Iterator[Server]:
        with self._started("dispatcher", "--backend", "inline") as process:
            yield Server(process)

    @contextmanager
    def _started(self, *command: str) -> Iterator[subprocess.Popen[str]]:
        """Killed at the end if it is still there."""
        given = {
            "HOME": self.home,
            "DATABASE_URL": self.database_url,
            "API_KEY": KEY,
            "CONCURRENT_JOBS": 2,
            "LEASE_SECONDS": 600,  # a driver may take its time to begin, on a machine as busy as it may be
        }
        environment = os.environ | {f"STILLHOUSE_{name}": str(value) for name, value in given.items()}
        with (
            self.log.open("a") as log,
            subprocess.Popen(
                [sys.executable, "-m", "service.cli", *command],
                env=environment | {"PYTHONPATH": str(self.tree)},
                cwd=self.tree,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            ) as process,
        ):
            try:
                yield process
            finally:
                process.kill()
