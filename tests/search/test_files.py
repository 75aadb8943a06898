"""How a location becomes a file: below the roots, or fetched from what was uploaded."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from search.errors import NotFound, UserError, VerificationFailed
from search.files import Files, upload_in
from tests.service.served import in_threads

ID = f"upl_{'0' * 26}"


@dataclass
class Kept:
    """One upload, in memory."""

    content: bytes = b"weights"
    says: bytes = b"weights"
    fetched: list[str] = field(default_factory=list)

    def digest(self, upload_id: str) -> str:
        if upload_id != ID:
            raise NotFound("no such upload")
        return hashlib.sha256(self.says).hexdigest()

    def pieces(self, upload_id: str) -> Iterator[bytes]:
        self.fetched.append(upload_id)
        yield self.content[:3]
        yield self.content[3:]


def test_an_upload_is_fetched_once_and_found_by_its_content(tmp_path: Path) -> None:
    kept = Kept()
    files = Files(tmp_path, (), kept)
    paths = in_threads(8, lambda _: files.resolve(f"upload:{ID}", pointer="/teacher/weights"))
    assert {path.read_bytes() for path in paths} == {b"weights"}
    assert kept.fetched == [ID]
    again: Files = pickle.loads(pickle.dumps(files))  # noqa: S301 - our own bytes
    assert again.resolve(f"upload:{ID}", pointer="") == paths[0]


def test_what_is_not_what_was_uploaded_is_not_kept(tmp_path: Path) -> None:
    files = Files(tmp_path, (), Kept(content=b"something else"))
    for _ in range(2):
        with pytest.raises(VerificationFailed):
            files.resolve(f"upload:{ID}", pointer="")
    assert [path.suffix for path in (tmp_path / "uploads").iterdir()] == [".lock"]


@pytest.mark.parametrize("name", [f"upl_{'1' * 26}", "", "upl_", "../../etc/passwd", "upl_" + "é" * 26, ID.upper()])
def test_an_upload_that_is_not_there_is_pointed_at(tmp_path: Path, name: str) -> None:
    kept = Kept()
    with pytest.raises(UserError, match="no complete upload") as caught:
        Files(tmp_path, (), kept).resolve(f"upload:{name}", pointer="/teacher/weights")
    assert caught.value.errors[0].pointer == "/teacher/weights"
    assert not kept.fetched


def test_without_a_server_there_are_no_uploads(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only servers keep uploads"):
        Files(tmp_path).resolve(f"upload:{ID}", pointer="")


def test_what_a_location_names() -> None:
    assert upload_in(f"upload:{ID}") == ID
    assert upload_in("upload:x") == "x"
    assert upload_in("folder/upload:x") is None
    assert upload_in(None) is None


@pytest.mark.parametrize("location", ["a" * 300, "a/" * 3000, "loop", "loop/x", "a\0b"])
def test_a_path_that_no_file_can_have_is_not_there(tmp_path: Path, location: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for roots in ((tmp_path,), None):
        with pytest.raises(UserError) as caught:
            Files(tmp_path, roots).resolve(location, pointer="/teacher/weights")
        assert caught.value.errors[0].pointer == "/teacher/weights"
