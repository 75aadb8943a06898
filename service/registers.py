"""Uploads, teachers and datasets from Python: parts of `service.client.Client`."""

from __future__ import annotations

import hashlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from search.errors import UserError
from search.header import MOST_HEADER, Header
from search.spec import Pick, TeacherSpec
from service.holdings import DatasetDocument, DatasetReport, TeacherDocument, UploadDocument
from service.wire import Conflict, Wire, document

CHECKING = 120.0
"""Seconds for answers that need the server to build a teacher first."""
_PIECE = 256 * 1024
_MAGIC = 10


class Uploads:
    """Files of weights on a server. Every method raises `NotFound` for an id that nobody has."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def send(self, path: str | Path, *, on_bytes: Callable[[int, int], None] | None = None) -> UploadDocument:
        """
        Uploads a safetensors file; `weights` of the answer is what stands at `weights` of a teacher.

        The file is never whole in memory. When the connection breaks it is sent again from its beginning, to the same
        upload. `on_bytes` is told the bytes sent so far and in all.

        Raises:
            WeightsError: it is no safetensors file; nothing was sent.
            UserError: it cannot be read.
            StatusError: the server does not take it: too large, no room, or changed while it was sent.
        """
        path = Path(path)
        try:
            size, digest = _judged(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        upload = self.declare(size, digest)

        def pieces() -> Iterator[bytes]:
            sent = 0
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
                    sent += len(piece)
                    if on_bytes is not None:
                        on_bytes(sent, size)

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        for attempt in range(self._wire.backoff.retries + 1):
            try:
                address = f"{_path(upload.id)}/content"
                answer = self._wire.send("PUT", address, headers=headers, content=pieces, timeout=CHECKING)
                return document(UploadDocument, answer)
            except Conflict:  # the answer to an earlier attempt was lost, or the server is still busy with it
                found = self.get(upload.id)
                if found.completed_at is not None:
                    return found
                if attempt == self._wire.backoff.retries:
                    raise
                time.sleep(self._wire.backoff.pause(attempt))
        raise AssertionError("unreachable: the last attempt returns or raises")

    def declare(self, size: int, sha256: str, idempotency_key: str | None = None) -> UploadDocument:
        """An upload whose content is still to come."""
        key = idempotency_key or str(uuid.uuid4())
        answer = self._wire.post("/v1/uploads", {"bytes": size, "sha256": sha256}, key=key)
        return document(UploadDocument, answer)

    def get(self, upload_id: str) -> UploadDocument:
        return document(UploadDocument, self._wire.get(_path(upload_id)))

    def list(self, *, page_size: int = 50) -> Iterator[UploadDocument]:
        """All uploads, complete or not, newest first."""
        found = self._wire.paged("/v1/uploads", "uploads", {"page_size": page_size})
        return (document(UploadDocument, upload) for upload in found)

    def delete(self, upload_id: str) -> None:
        """Raises `Conflict` when a teacher that is registered, or a job that has not ended, uses it."""
        self._wire.send("DELETE", _path(upload_id))


class Teachers:
    """Teachers that were registered. Every method raises `NotFound` for an id that nobody has."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(
        self,
        name: str,
        teacher: TeacherSpec | Mapping[str, Any],
        dataset: Pick | Mapping[str, Any],
        idempotency_key: str | None = None,
    ) -> TeacherDocument:
        """
        Registers a teacher for the images of a dataset; `spec` of the answer is what stands at `teacher` in a job.

        Raises:
            Invalid: it cannot be built for that dataset, or given those weights.
        """
        body = {"name": name, "teacher": _plain(teacher), "dataset": _plain(dataset)}
        key = idempotency_key or str(uuid.uuid4())
        return document(TeacherDocument, self._wire.post("/v1/teachers", body, key=key, timeout=CHECKING))

    def get(self, teacher_id: str) -> TeacherDocument:
        return document(TeacherDocument, self._wire.get(f"/v1/teachers/{teacher_id}"))

    def list(self, *, page_size: int = 50) -> Iterator[TeacherDocument]:
        """All teachers, newest first."""
        found = self._wire.paged("/v1/teachers", "teachers", {"page_size": page_size})
        return (document(TeacherDocument, teacher) for teacher in found)

    def delete(self, teacher_id: str) -> None:
        """Jobs that were made of it go on."""
        self._wire.send("DELETE", f"/v1/teachers/{teacher_id}")


class Datasets:
    """Datasets that were registered. Every method raises `NotFound` for an id that nobody has."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def create(
        self, name: str, dataset: Pick | Mapping[str, Any], idempotency_key: str | None = None
    ) -> DatasetDocument:
        """
        Registers a dataset; `spec` of the answer is what stands at `dataset` in a job.

        Raises:
            Invalid: no job could use it.
        """
        body = {"name": name, "dataset": _plain(dataset)}
        key = idempotency_key or str(uuid.uuid4())
        return document(DatasetDocument, self._wire.post("/v1/datasets", body, key=key, timeout=CHECKING))

    def get(self, dataset_id: str) -> DatasetDocument:
        return document(DatasetDocument, self._wire.get(f"/v1/datasets/{dataset_id}"))

    def report(self, dataset_id: str) -> DatasetReport:
        """Its images by split and class, and which of its files are broken or suspicious."""
        return document(DatasetReport, self._wire.get(f"/v1/datasets/{dataset_id}/report"))

    def list(self, *, page_size: int = 50) -> Iterator[DatasetDocument]:
        """All datasets, newest first."""
        found = self._wire.paged("/v1/datasets", "datasets", {"page_size": page_size})
        return (document(DatasetDocument, dataset) for dataset in found)

    def delete(self, dataset_id: str) -> None:
        """Its files stay where they are."""
        self._wire.send("DELETE", f"/v1/datasets/{dataset_id}")


def _judged(path: Path) -> tuple[int, str]:
    """Length and SHA-256 of a file, once its header was found to be one of safetensors."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        Header.of(file.read(MOST_HEADER + _MAGIC), size)
        file.seek(0)
        return size, hashlib.file_digest(file, "sha256").hexdigest()


def _plain(part: TeacherSpec | Pick | Mapping[str, Any]) -> dict[str, Any]:
    return part.model_dump(mode="json", exclude_unset=True) if isinstance(part, Pick) else dict(part)


def _path(upload_id: str) -> str:
    return f"/v1/uploads/{upload_id}"
