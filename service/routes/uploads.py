"""Files that users send: declared first, then sent as they are, judged while they come."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Annotated

import anyio
import anyio.from_thread
import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from search.errors import FieldError, NotFound, WeightsError
from search.header import MOST_HEADER, Header, extent
from service.auth import may_read, may_submit
from service.deps import (
    ArtifactsDep,
    IdempotencyKey,
    InvalidBody,
    JsonBody,
    SettingsDep,
    UploadId,
    UploadsDep,
    once,
    read_body,
)
from service.description import answers, body
from service.holdings import LARGEST_UPLOAD, UploadDocument, UploadPage, UploadRequest
from service.problems import Refusal
from service.routes import pages
from service.routes.creation import creation, made
from service.schemas import Paging
from service.store.ports import Uploads
from service.store.values import QuotaSpent, Upload, Whole
from workers.ports import PIECE, Artifact
from workers.uploads import Uploaded

router = APIRouter(prefix="/v1/uploads", tags=["uploads"], dependencies=[may_read])

_BINARY = "application/octet-stream"
_MAGIC = 10
"""Bytes that tell a safetensors file from others."""
_ID = "upl_01ke7bq8k0f7m2s5v9x3y6z1ab"
_SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
_EXAMPLE = {
    "id": _ID,
    "weights": f"upload:{_ID}",
    "bytes": 2_499_352,
    "sha256": _SHA256,
    "created_at": "2026-01-05T09:30:00Z",
    "completed_at": "2026-01-05T09:30:04Z",
}
_ON_ONE = ("UNAUTHENTICATED", "NOT_FOUND", "STORE_UNAVAILABLE")


class Intake:
    """
    The uploads that are coming in at the moment: no more than `places` at once, and each once only. They have threads
    of their own, so that slow ones keep nobody else waiting. Belongs to one event loop, so it needs no lock.
    """

    def __init__(self, places: int = 8) -> None:
        self.threads = anyio.CapacityLimiter(places)
        self._coming: set[str] = set()

    @contextmanager
    def place(self, upload_id: str) -> Iterator[None]:
        """Raises `Refusal` when there is none."""
        if upload_id in self._coming:
            raise Refusal("CONFLICT", "This upload is coming in at the moment; wait for its end.")
        if len(self._coming) >= self.threads.total_tokens:
            raise Refusal("BUSY", "As many uploads are coming in as this server takes at once; try again later.")
        self._coming.add(upload_id)
        try:
            yield
        finally:
            self._coming.discard(upload_id)


@router.post(
    "",
    operation_id="uploads.create",
    dependencies=[may_submit],
    status_code=201,
    response_model=UploadDocument,
    responses={
        **creation(
            "upload", _EXAMPLE | {"completed_at": None}, "get", "content", "delete", told="whose content may come now"
        ),
        **answers(
            "MALFORMED_JSON",
            "MALFORMED_REQUEST",
            "UNAUTHENTICATED",
            "BODY_TOO_LARGE",
            "UNSUPPORTED_MEDIA_TYPE",
            "INVALID",
            "INVALID_PARAMETER",
            "IDEMPOTENCY_KEY_REUSED",
            "BEYOND_QUOTA",
            "QUOTA_STORED_BYTES",
            "STORAGE_FULL",
        ),
    },
    openapi_extra=body(UploadRequest, {"bytes": _EXAMPLE["bytes"], "sha256": _SHA256}),
)
def create(document: JsonBody, key: IdempotencyKey, uploads: UploadsDep, settings: SettingsDep) -> Response:
    """
    Declare a file of weights (safetensors) by its length and SHA-256. Its content comes next, by PUT to `content`;
    until then nothing is stored and nothing counts.
    """
    asked = read_body(UploadRequest, document)
    if asked.bytes > settings.upload_bytes:
        told = f"this server takes files of up to {settings.upload_bytes:,} bytes; send a smaller one"
        raise InvalidBody([FieldError("/bytes", "INVALID_VALUE", told, (str(settings.upload_bytes),))])
    upload, new = uploads.declare(asked.bytes, asked.sha256, once("uploads.create", key, asked))
    return made(_document(upload), f"/v1/uploads/{upload.id}", new=new)


@router.put(
    "/{upload_id}/content",
    operation_id="uploads.content",
    dependencies=[may_submit],
    max_body_size=LARGEST_UPLOAD,
    responses=answers(
        *_ON_ONE,
        "MALFORMED_REQUEST",
        "TOO_SLOW",
        "CONFLICT",
        "LENGTH_REQUIRED",
        "BODY_TOO_LARGE",
        "UNSUPPORTED_MEDIA_TYPE",
        "UPLOAD_DIFFERS",
        "WEIGHTS_UNUSABLE",
        "QUOTA_STORED_BYTES",
        "BUSY",
        "STORAGE_FULL",
        example=_EXAMPLE,
    ),
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {_BINARY: {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def content(
    request: Request, upload_id: UploadId, uploads: UploadsDep, artifacts: ArtifactsDep
) -> UploadDocument:
    """
    Send the content of an upload: the file's bytes, as they are, with their length in `Content-Length`.

    The upload is complete when this answers. A file that is not the one declared, or no safetensors, is refused and
    leaves nothing behind; the upload then waits for another try.
    """
    upload = await run_in_threadpool(uploads.upload, upload_id)
    if upload.completed_at is not None:
        raise Whole(upload_id)
    _check_headers(request, upload)
    intake: Intake = request.app.state.intake
    with intake.place(upload_id):
        take = partial(anyio.from_thread.run, _Arriving(request).piece)
        keep = partial(_keep, upload, take, uploads, Uploaded(artifacts))
        return _document(await anyio.to_thread.run_sync(keep, limiter=intake.threads))


@router.get(
    "",
    operation_id="uploads.list",
    responses=answers("UNAUTHENTICATED", "INVALID_PARAMETER", example={"uploads": [_EXAMPLE], "next_page_token": ""}),
)
def list_uploads(paging: Annotated[Paging, Query()], uploads: UploadsDep) -> UploadPage:
    """The uploads of the caller's tenant, complete or not, newest first, a page at a time."""
    found = uploads.uploads(limit=paging.size + 1, before=pages.read(paging.page_token))
    page, token = pages.cut(found, paging.size, lambda upload: (upload.created_at, upload.id))
    return UploadPage(uploads=[_document(upload) for upload in page], next_page_token=token)


@router.get("/{upload_id}", operation_id="uploads.get", responses=answers(*_ON_ONE, example=_EXAMPLE))
def get(upload_id: UploadId, uploads: UploadsDep) -> UploadDocument:
    """One upload. Its content cannot be had again."""
    return _document(uploads.upload(upload_id))


@router.delete(
    "/{upload_id}",
    operation_id="uploads.delete",
    dependencies=[may_submit],
    status_code=204,
    response_class=Response,
    responses={204: {"description": "It is gone"}, **answers(*_ON_ONE, "CONFLICT", "STORAGE_FULL")},
)
def delete(upload_id: UploadId, uploads: UploadsDep, artifacts: ArtifactsDep) -> Response:
    """
    Delete an upload, unless a registered teacher or a job that has not ended uses it. Again changes nothing.
    """
    uploads.delete(upload_id)
    Uploaded(artifacts).delete(upload_id)
    return Response(status_code=204)


def _document(upload: Upload) -> UploadDocument:
    return UploadDocument(weights=f"upload:{upload.id}", **asdict(upload))


def _check_headers(request: Request, upload: Upload) -> None:
    """What can be refused before a byte is read."""
    headers = request.headers
    declared = headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != _BINARY or headers.get("content-encoding", "identity").lower() != "identity":
        told = f"Send the file's bytes as they are, with `Content-Type: {_BINARY}` and no Content-Encoding."
        raise Refusal("UNSUPPORTED_MEDIA_TYPE", told)
    length = headers.get("content-length")
    if length is None:
        raise Refusal("LENGTH_REQUIRED", f"Send `Content-Length: {upload.bytes}`; a body in chunks is not taken.")
    if not (length.isascii() and length.isdecimal() and len(length) < 20):
        raise Refusal("MALFORMED_REQUEST", "Send a whole number as Content-Length.")
    if int(length) != upload.bytes:
        raise _differs(f"{int(length):,} bytes were announced, and {upload.bytes:,} declared")


class _Arriving:
    """The body of a request, a MiB at a time."""

    def __init__(self, request: Request) -> None:
        self._stream: AsyncIterator[bytes] = aiter(request.stream())

    async def piece(self) -> bytes:
        """Empty at the end. Raises `Refusal`: the client is too slow (408), or gone (400)."""
        gathered = bytearray()
        try:
            async for more in self._stream:
                gathered += more
                if len(gathered) >= PIECE:
                    break
        except ClientDisconnect:
            raise Refusal("MALFORMED_REQUEST", "The body ended before its announced length.") from None
        return bytes(gathered)


def _keep(upload: Upload, take: Callable[[], bytes], uploads: Uploads, uploaded: Uploaded) -> Upload:
    """The upload, complete; nothing is left of one that is refused. Runs in a thread."""

    def accept(came: Artifact) -> None:
        if came.bytes != upload.bytes:
            raise _differs(f"{came.bytes:,} bytes came, and {upload.bytes:,} were declared")
        if came.sha256 != upload.sha256:
            raise _differs(f"what came has the SHA-256 {came.sha256}, and {upload.sha256} was declared")

    uploaded.keep(upload.id, _judged(upload, take), accept)
    try:
        return uploads.complete(upload.id)
    except (NotFound, QuotaSpent):  # deleted meanwhile, or others have used up the room
        uploaded.delete(upload.id)
        raise


def _judged(upload: Upload, take: Callable[[], bytes]) -> Iterator[bytes]:
    """The pieces as they come, refused as soon as the header is known to be none of safetensors."""
    start, came, judged = bytearray(), 0, False
    while piece := take():
        came += len(piece)
        if came > upload.bytes:
            raise _differs(f"more than the {upload.bytes:,} bytes came that were declared")
        if not judged:
            start += piece
            judged = _judge(start, upload.bytes)
        yield piece
    if not judged and came == upload.bytes:
        _judge(start, upload.bytes, last=True)


def _judge(start: bytearray, size: int, *, last: bool = False) -> bool:
    """Whether the header was there to be judged, and is a good one. Raises `WeightsError`."""
    try:
        if not last and (len(start) < _MAGIC or len(start) < extent(bytes(start[:_MAGIC]), size)):
            return False
        Header.of(bytes(start[: MOST_HEADER + _MAGIC]), size)
    except WeightsError as error:
        raise WeightsError(error.message, pointer="") from None
    return True


def _differs(how: str) -> Refusal:
    return Refusal("UPLOAD_DIFFERS", f"{how}. Nothing was kept; send the file that was declared.")
