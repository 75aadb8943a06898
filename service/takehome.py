"""Where a student comes to lie on the user's disk: whole or not at all, and never over anything but a student."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from search.errors import UserError

STUDENT_FILES = frozenset({"architecture.json", "weights.safetensors", "load.py", "student.onnx"})
_LEFT_BY_PYTHON = frozenset({"__pycache__"})
_LEVEL = re.compile(r"student-\d{1,2}")
"""The folder of one level of a ladder."""
_ARTIFACT = re.compile(r"(?:student|(?P<level>student-\d{1,2}))/(?P<file>.*)", re.DOTALL)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,254}")


def check_place(out: Path) -> None:
    """
    Raises:
        UserError: `out` is a file, the current folder, or one that holds something other than earlier students.
    """
    if out.resolve() == Path.cwd():
        raise UserError("the current folder cannot be replaced; write a folder below it after --out")
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir():
        raise UserError(f"{out} is not a folder; write another one after --out")
    foreign = sorted(_foreign(out))
    if foreign:
        raise UserError(
            f"{out} holds more than a student ({', '.join(foreign[:3])}), so it is left as it is; "
            "write an empty or new folder after --out"
        )


def _foreign(folder: Path, *, below: bool = False) -> Iterator[str]:
    """What is no student's; the folders of a ladder's levels are looked into."""
    for path in folder.iterdir():
        if not below and _LEVEL.fullmatch(path.name) and path.is_dir() and not path.is_symlink():
            yield from (f"{path.name}/{name}" for name in _foreign(path, below=True))
        elif path.name not in STUDENT_FILES | _LEFT_BY_PYTHON:
            yield path.name


def student_file(artifact: str) -> tuple[str, str] | None:
    """
    Where an artifact of that name is put at home: the folder below the one written to (empty for a job without a
    ladder) and the file, whose name may not be safe yet. None: it is no file of a student.
    """
    match = _ARTIFACT.fullmatch(artifact)
    return None if match is None else (match["level"] or "", match["file"])


def safe_name(name: str) -> bool:
    """Whether a file of that name lies directly in the folder it is written to, on every system."""
    return _NAME.fullmatch(name) is not None


@contextmanager
def placing(out: Path) -> Iterator[Path]:
    """
    An empty folder to write to; it becomes `out` when the block ends well and disappears when it does not.

    Raises:
        UserError: as `check_place`.
    """
    check_place(out)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as aside:
        fresh, former = Path(aside) / "fresh", Path(aside) / "former"
        fresh.mkdir()
        yield fresh
        for path in fresh.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        if out.exists():
            out.rename(former)
        try:
            fresh.rename(out)
        except OSError:
            if former.exists():
                former.rename(out)
            raise
        shutil.rmtree(former, ignore_errors=True)
