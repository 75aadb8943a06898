"""A server as a process of its own, for programs that measure one from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

KEY = "sth_benchmark-0123456789-0123456789-01234567"
AUTHORIZED = {"Authorization": f"Bearer {KEY}"}


@dataclass(frozen=True)
class Served:
    url: str
    pid: int

    @property
    def megabytes(self) -> float:
        """Of memory that is resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024

    @property
    def descriptors(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    @property
    def seconds(self) -> float:
        """Of CPU, in the process and not in its children."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(database_url: str, home: Path, **settings: object) -> Iterator[Served]:
    """`stillhouse api` over a database that it migrates first, with a `key` of its own and no other settings."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STILLHOUSE_")}
    given = {"HOME": home, "DATABASE_URL": database_url, "PORT": 0, "API_KEY": KEY, "LOG_LEVEL": "error"} | settings
    environment |= {f"STILLHOUSE_{name}": str(value) for name, value in given.items()}
    command = [sys.executable, "-m", "service.cli"]
    subprocess.run([*command, "migrate"], env=environment, check=True, stderr=subprocess.DEVNULL)
    process = subprocess.Popen([*command, "api", "--json"], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = "".join(takewhile(lambda line: line != "}\n", process.stdout))
        yield Served(json.loads(told + "}")["url"], process.pid)
    finally:
        process.terminate()
        process.wait()
