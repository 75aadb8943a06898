"""What `workers.ports.Artifacts` promises, over every place there is."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.errors import NotFound
from workers.artifacts import FolderArtifacts
from workers.memory import MemoryArtifacts
from workers.ports import PIECE, Artifact, Artifacts

if TYPE_CHECKING:
    _memory: Artifacts = MemoryArtifacts()
    _folder: Callable[[str], Artifacts] = FolderArtifacts


@pytest.fixture(params=["memory", "folder", "uri"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    if request.param == "memory":
        return MemoryArtifacts()
    folder = tmp_path / "with space" / "art√facts"
    return FolderArtifacts(folder if request.param == "folder" else folder.as_uri())


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=4096))
def test_what_was_put_comes_back(artifacts: Artifacts, data: bytes) -> None:
    key = "jobs/job_1/student/weights.safetensors"
    put = artifacts.put(key, data)
    assert put == Artifact(key, len(data), hashlib.sha256(data).hexdigest())
    assert artifacts.get(key) == data
    assert artifacts.has(key)


def test_what_was_never_put_is_not_there(artifacts: Artifacts) -> None:
    artifacts.put("jobs/1/a", b"a")
    for key in ("jobs/1/b", "jobs", "jobs/1", "jobs/1/a/b"):
        assert not artifacts.has(key)
        with pytest.raises(NotFound, match=f"`{key}`"):
            artifacts.get(key)


def test_putting_again_replaces(artifacts: Artifacts) -> None:
    artifacts.put("jobs/1/a", b"a long first version")
    again = artifacts.put("jobs/1/a", b"short")
    assert artifacts.get("jobs/1/a") == b"short"
    assert again.bytes == 5


def test_what_comes_in_pieces_is_one_file(artifacts: Artifacts) -> None:
    pieces, shown = [b"", b"ab", bytes(PIECE), b"c"], []
    put = artifacts.put_pieces("jobs/1/a", iter(pieces), shown.append)
    whole = b"".join(pieces)
    assert shown == [put] == [Artifact("jobs/1/a", len(whole), hashlib.sha256(whole).hexdigest())]
    assert artifacts.get("jobs/1/a") == whole
    assert [len(piece) for piece in artifacts.pieces("jobs/1/a")] == [PIECE, 3]
    assert artifacts.put_pieces("jobs/1/empty", (), shown.append).bytes == 0
    assert list(artifacts.pieces("jobs/1/empty")) == []


def test_what_is_not_accepted_or_breaks_off_leaves_the_former_file(artifacts: Artifacts) -> None:
    def breaking() -> Iterator[bytes]:
        yield b"half of"
        raise OSError("the client is gone")

    def refusing(artifact: Artifact) -> None:
        raise KeyError(artifact.sha256)

    artifacts.put("a", b"former")
    for key in ("a", "new"):
        with pytest.raises(OSError, match="the client is gone"):
            artifacts.put_pieces(key, breaking(), lambda _: None)
        with pytest.raises(KeyError):
            artifacts.put_pieces(key, [b"latter"], refusing)
    assert artifacts.get("a") == b"former"
    assert not artifacts.has("new")
    if isinstance(artifacts, FolderArtifacts):
        assert not list(Path(artifacts._root, ".incoming").iterdir())


def test_what_is_deleted_is_not_there_and_may_be_put_again(artifacts: Artifacts) -> None:
    for key in ("jobs/1/a", "jobs/1/b"):
        artifacts.put(key, b"1")
    for key in ("jobs/1/a", "jobs/1/a", "jobs/1/never", "never/was", "jobs"):
        artifacts.delete(key)
    assert not artifacts.has("jobs/1/a")
    assert artifacts.get("jobs/1/b") == b"1"
    with pytest.raises(NotFound):
        list(artifacts.pieces("jobs/1/a"))
    artifacts.put("jobs/1/a", b"2")
    assert artifacts.get("jobs/1/a") == b"2"


BAD_KEYS = ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".incoming/a", "a/.b", "a b", "ä", "a\\b"]
BAD_KEYS += ["a\0", "a\n", "a?b", "a#b", "a%2e", "s3://a/b", "a" * 1025]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_we_would_not_make_is_a_mistake(artifacts: Artifacts, key: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: artifacts.put(key, b""),
        lambda: artifacts.get(key),
        lambda: artifacts.has(key),
        lambda: artifacts.put_pieces(key, [], lambda _: None),
        lambda: list(artifacts.pieces(key)),
        lambda: artifacts.delete(key),
    ]
    for use in uses:
        with pytest.raises(ValueError, match="not the key of an artifact"):
            use()


def test_a_reader_never_meets_half_a_file(artifacts: Artifacts) -> None:
    versions = [bytes([number]) * 300_000 for number in range(8)]
    artifacts.put("a", versions[0])
    over = threading.Event()

    def read() -> int:
        reads = 0
        while not over.is_set():
            assert artifacts.get("a") in versions
            reads += 1
        return reads

    with ThreadPoolExecutor(2) as pool:
        reads = pool.submit(read)
        for version in versions * 3:
            artifacts.put("a", version)
        over.set()
        assert reads.result() > 0
