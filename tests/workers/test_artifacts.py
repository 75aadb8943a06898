"""What only files on a disk can show. What all places of artifacts promise is in `tests.contracts.test_artifacts`."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path

import pytest

from search.errors import StorageFull, StoreUnavailable, UserError
from workers.artifacts import FolderArtifacts


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_key_is_a_path_below_the_folder(tmp_path: Path) -> None:
    FolderArtifacts(tmp_path).put("jobs/job_1/student.onnx", b"graph")
    assert (tmp_path / "jobs" / "job_1" / "student.onnx").read_bytes() == b"graph"
    assert files_below(tmp_path) == ["jobs/job_1/student.onnx"]


def test_another_process_sees_the_same_files(tmp_path: Path) -> None:
    artifacts = FolderArtifacts(tmp_path)
    artifacts.put("a", b"1")
    copy: FolderArtifacts = pickle.loads(pickle.dumps(artifacts))  # noqa: S301 - our own bytes
    assert copy.get("a") == b"1"
    copy.put("b", b"2")
    assert artifacts.get("b") == b"2"


def test_a_relative_folder_stays_the_same_when_the_process_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    artifacts = FolderArtifacts("kept")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    artifacts.put("a", b"1")
    assert (tmp_path / "kept" / "a").read_bytes() == b"1"


def test_data_is_synced_before_it_is_published_and_its_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifacts, synced = FolderArtifacts(tmp_path), []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.parent.name if path.is_file() else path.name, (tmp_path / "jobs" / "a").exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    artifacts.put("jobs/a", b"1")
    assert synced == [(".incoming", False), ("jobs", True)]


@pytest.mark.parametrize(
    ("number", "meaning"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StoreUnavailable),
        (errno.EROFS, StoreUnavailable),
    ],
)
def test_a_disk_that_fails_leaves_the_former_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, meaning: type[Exception]
) -> None:
    artifacts = FolderArtifacts(tmp_path)
    artifacts.put("a", b"former")

    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreUnavailable) as caught:
            artifacts.put("a", b"latter")
    assert type(caught.value) is meaning
    assert artifacts.get("a") == b"former"
    assert files_below(tmp_path) == ["a"]
    artifacts.put("a", b"latter")
    assert artifacts.get("a") == b"latter"


def test_a_folder_that_is_a_file_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match=r"\(Not a directory\)") as caught:
        FolderArtifacts(tmp_path / "file").put("a", b"1")
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = FolderArtifacts(tmp_path)
    artifacts.put("a", b"0123456789")

    class Torn:
        def __init__(self, files: object) -> None:
            self.files = files

        def __getattr__(self, name: str) -> object:
            return getattr(self.files, name)

        def open_input_stream(self, path: str) -> object:
            os.truncate(path, 4)
            return self.files.open_input_stream(path)  # type: ignore[attr-defined]

    monkeypatch.setattr(artifacts, "_fs", Torn(artifacts._fs))
    with pytest.raises(StoreUnavailable, match="has 10 bytes, but 4 came"):
        artifacts.get("a")


@pytest.mark.parametrize("location", ["gopher://user:secret@somewhere/else", "://"])
def test_a_place_that_no_one_knows_is_refused(location: str) -> None:
    with pytest.raises(UserError, match="not a place for artifacts") as caught:
        FolderArtifacts(location)
    assert "secret" not in str(caught.value)
