"""
The key by which clients on a server's own machine come in, without anybody typing it.

A server with its database in its home makes it at its first start and keeps it there, readable by its owner only.
Whoever may read that file may read the database beside it too, so it gives away nothing that is not theirs already.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

FILE = "api-key"
NAME = "this machine"
"""What the key is called on record."""


def file_in(home: Path) -> Path:
    return home / FILE


def kept_in(home: Path) -> str:
    """The key that is kept there; empty when there is none that we may read."""
    return read(file_in(home))


def read(file: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return file.expanduser().read_text(encoding="ascii").strip()
    return ""


def keep_in(home: Path, secret: str) -> None:
    """Writes it whole or not at all, for the owner's eyes only."""
    home.mkdir(parents=True, exist_ok=True)
    fresh = home / f".{FILE}.{os.getpid()}"
    with suppress(FileNotFoundError):
        fresh.unlink()
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{secret}\n")
    fresh.replace(file_in(home))


def of_this_machine() -> str:
    """The one in the home that the environment names, or in the usual one."""
    return kept_in(Path(os.environ.get("STILLHOUSE_HOME") or "~/.stillhouse").expanduser())
