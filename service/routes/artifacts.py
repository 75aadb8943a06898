"""What a job has made: its files, by the names that its list gives them."""

from __future__ import annotations

import base64
import hashlib
import hmac
from urllib.parse import quote

from fastapi import APIRouter, Request, Response

from search.errors import NotFound, VerificationFailed
from service.auth import may_read
from service.deps import ArtifactsDep, JobId, JobsDep
from service.description import answers
from service.documents import artifact_document
from service.examples import JOB
from service.schemas import ArtifactList
from workers.ports import JobRecord, StoredFile

router = APIRouter(prefix="/v1/jobs", tags=["artifacts"], dependencies=[may_read])


@router.get(
    "/{job_id}/artifacts",
    operation_id="jobs.artifacts",
    responses=answers("UNAUTHENTICATED", "NOT_FOUND", "STORE_UNAVAILABLE", example={"artifacts": JOB["artifacts"]}),
)
def list_artifacts(job_id: JobId, jobs: JobsDep) -> ArtifactList:
    """The files of a job."""
    record = jobs.job(job_id)
    return ArtifactList(artifacts=[artifact_document(record.id, stored) for stored in record.files])


@router.get(
    "/{job_id}/artifacts/{name:path}/content",
    operation_id="jobs.artifact_content",
    response_class=Response,
    responses={
        200: {
            "description": "The file, whole",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            "headers": {
                "ETag": {"description": "Its SHA-256, in hexadecimal", "schema": {"type": "string"}},
                "Repr-Digest": {"description": "Its SHA-256 (RFC 9530)", "schema": {"type": "string"}},
            },
        },
        304: {"description": "The file is what If-None-Match says the client has"},
        **answers("UNAUTHENTICATED", "NOT_FOUND", "VERIFICATION_FAILED", "STORE_UNAVAILABLE"),
    },
)
def artifact_content(request: Request, job_id: JobId, name: str, jobs: JobsDep, artifacts: ArtifactsDep) -> Response:
    """One file. It is compared with its digest on record before the first byte is sent."""
    # The name is looked for in the job's own list and goes nowhere else, so it cannot lead to another file.
    stored = _find(jobs.job(job_id), name)
    headers = _headers(stored)
    if headers["ETag"] in [tag.strip() for tag in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=304, headers=headers)
    data = artifacts.get(stored.artifact.key)
    if not hmac.compare_digest(hashlib.sha256(data).hexdigest(), stored.artifact.sha256):
        raise VerificationFailed(f"the artifact `{stored.artifact.key}` is not what was put there")
    return Response(data, headers=headers, media_type=stored.media_type)


def _find(record: JobRecord, name: str) -> StoredFile:
    for stored in record.files:
        if stored.name == name:
            return stored
    raise NotFound(f"{record.id} has no artifact of that name; GET /v1/jobs/{record.id}/artifacts lists what it has")


def _headers(stored: StoredFile) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(stored.artifact.sha256)).decode()
    return {
        "ETag": f'"{stored.artifact.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(stored.name.rpartition('/')[2], safe='')}",
        "Accept-Ranges": "none",
    }
