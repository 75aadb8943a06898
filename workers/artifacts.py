"""Artifacts in a folder or in a bucket of S3, by way of `pyarrow.fs`."""

from __future__ import annotations

import errno
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pyarrow import fs

from search.errors import StorageFull, StoreUnavailable, UserError
from workers.ports import PIECE, Artifact
from workers.rules import check_key, no_such_artifact

_INCOMING = ".incoming"


class FolderArtifacts:
    """
    `Artifacts` below `location`, a path or a URI such as `s3://bucket/prefix?region=eu-central-1`.

    A file is written below `.incoming/` and then moved to its key, so no reader meets a half-written one. On a local
    disk it is synced before and after the move: what `put` has returned survives a power cut. May be pickled.

    Raises:
        UserError: `location` is no place that can be understood.
        StorageFull: there is no room left.
        StoreUnavailable: the folder or the bucket cannot be reached.
    """

    def __init__(self, location: str | Path) -> None:
        text = str(location)
        try:
            with _translated():
                self._fs, root = fs.FileSystem.from_uri(
                    text if "://" in text else str(Path(text).expanduser().absolute())
                )
        except ValueError:  # its text would repeat the URI, which may hold a password
            raise UserError(
                "not a place for artifacts; write a path, or a URI such as `s3://bucket/prefix?region=eu-central-1`"
            ) from None
        self._root = root.rstrip("/")
        self._local = isinstance(self._fs, fs.LocalFileSystem)

    def put(self, key: str, data: bytes) -> Artifact:
        return self.put_pieces(key, (data,), lambda artifact: None)

    def put_pieces(self, key: str, pieces: Iterable[bytes], accept: Callable[[Artifact], None]) -> Artifact:
        place, incoming = self._place(check_key(key)), f"{self._root}/{_INCOMING}/{uuid.uuid4().hex}"
        try:
            with _translated():
                if self._local:  # a bucket has no folders
                    for path in (incoming, place):
                        self._fs.create_dir(path.rpartition("/")[0], recursive=True)
                stream = self._fs.open_output_stream(incoming)
            artifact = _written(stream, key, pieces)
            accept(artifact)
            with _translated():
                self._sync(incoming)
                self._fs.move(incoming, place)
                self._sync(place.rpartition("/")[0])
        except BaseException:
            with suppress(OSError):
                self._fs.delete_file(incoming)
            raise
        return artifact

    def get(self, key: str) -> bytes:
        """
        Raises:
            NotFound: nothing was put under this key.
            StoreUnavailable: fewer or more bytes came than the store says the file has.
        """
        place = self._place(check_key(key))
        with _translated():
            info = self._fs.get_file_info(place)
            if info.type != fs.FileType.File:
                raise no_such_artifact(key)
            with self._fs.open_input_stream(place) as stream:
                data: bytes = stream.read()
        if len(data) != info.size:
            raise StoreUnavailable(f"the artifact `{key}` has {info.size} bytes, but {len(data)} came")
        return data

    def pieces(self, key: str) -> Iterator[bytes]:
        """Raises as `get` does."""
        place, came = self._place(check_key(key)), 0
        with _translated():
            info = self._fs.get_file_info(place)
            if info.type != fs.FileType.File:
                raise no_such_artifact(key)
            stream = self._fs.open_input_stream(place)
        with stream:
            while True:
                with _translated():
                    piece: bytes = stream.read(PIECE)
                if not piece:
                    break
                came += len(piece)
                yield piece
        if came != info.size:
            raise StoreUnavailable(f"the artifact `{key}` has {info.size} bytes, but {came} came")

    def delete(self, key: str) -> None:
        place = self._place(check_key(key))
        with _translated(), suppress(FileNotFoundError):
            if self._fs.get_file_info(place).type == fs.FileType.File:
                self._fs.delete_file(place)

    def has(self, key: str) -> bool:
        with _translated():
            found: bool = self._fs.get_file_info(self._place(check_key(key))).type == fs.FileType.File
        return found

    def _place(self, key: str) -> str:
        return f"{self._root}/{key}"

    def _sync(self, path: str) -> None:
        if not self._local:
            return
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _written(stream: Any, key: str, pieces: Iterable[bytes]) -> Artifact:
    """Closes the stream whatever happens; what `pieces` raises goes through as it is."""
    digest, size = hashlib.sha256(), 0
    try:
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            with _translated():
                stream.write(piece)
        with _translated():
            stream.flush()
    finally:
        with _translated():
            stream.close()
    return Artifact(key, size, digest.hexdigest())


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("there is no room left for artifacts; free some space and submit again") from error
        raise StoreUnavailable(
            f"the artifacts cannot be reached now ({os.strerror(error.errno) if error.errno else 'no connection'})"
        ) from error
