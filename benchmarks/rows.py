"""Where benchmarks keep their rows: files of JSON, a line each, to which several programs may add at once."""

from __future__ import annotations

from benchmarks.teachers import home
from search.files import exclusive


def lines(name: str) -> list[str]:
    """Of `name`.jsonl in STILLHOUSE_BENCH_HOME (see benchmarks.teachers)."""
    path = home() / f"{name}.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def append(name: str, line: str) -> None:
    path = home() / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(path.with_suffix(".lock")), path.open("a") as file:
        file.write(line + "\n")
