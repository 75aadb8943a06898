"""What `workers.ports.Artifacts` promises, over every place there is."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.errors import NotFound
from workers.artifacts import FolderArtifacts
from workers.memory import MemoryArtifacts
from workers.ports import Artifact, Artifacts

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


BAD_KEYS = ["", "/a", "a/", "a//b", ".", "..", "../a", "a/../b", "a/./b", ".incoming/a", "a/.b", "a b", "ä", "a\\b"]
BAD_KEYS += ["a\0", "a\n", "a?b", "a#b", "a%2e", "s3://a/b", "a" * 1025]


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_we_would_not_make_is_a_mistake(artifacts: Artifacts, key: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: artifacts.put(key, b""),
        lambda: artifacts.get(key),
        lambda: artifacts.has(key),
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
