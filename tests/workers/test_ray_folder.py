from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from workers.backends import ray as backend


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(backend, "_LONGEST_PARENT", 1000)
    return tmp_path


def aged(folder: Path) -> Path:
    (folder / "session").mkdir(parents=True, exist_ok=True)
    os.utime(folder, (0, 0))
    return folder


def test_what_a_killed_owner_left_is_removed(temporary: Path) -> None:
    left, foreign = aged(temporary / "sth-ray-left"), aged(temporary / "something-else")
    folder = backend._Folder()
    assert not left.exists()
    assert foreign.exists()
    folder.remove()
    assert list(temporary.iterdir()) == [foreign]


def test_the_folder_of_a_living_owner_stays(temporary: Path) -> None:
    first = backend._Folder()
    aged(first.path)
    second = backend._Folder()
    assert first.path.exists()
    first.remove()
    second.remove()


def test_a_folder_that_is_being_made_stays(temporary: Path) -> None:
    fresh = temporary / "sth-ray-fresh"
    fresh.mkdir()
    backend._Folder().remove()
    assert fresh.exists()


def test_a_long_path_for_temporary_files_is_not_used(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_LONGEST_PARENT", 3)
    folder = backend._Folder()
    assert len(str(folder.path)) < 35
    folder.remove()
