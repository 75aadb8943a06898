"""What a user asks of a job that is on record: a pause, a change, another one like it, or that it be gone."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.concurrency import run_in_threadpool

from search.errors import FieldError, IllegalTransition, InvalidSpec, StoreUnavailable, UserError
from search.spec import JobSpec, read_spec
from service.asking import Questions
from service.auth import may_read, may_submit
from service.deps import (
    ArtifactsDep,
    AskingDep,
    IdempotencyKey,
    InvalidBody,
    JobId,
    JobsDep,
    MergePatch,
    OptionalPatch,
)
from service.description import answers, patch_body
from service.documents import JobDocument
from service.examples import JOB, QUEUED_JOB
from service.routes.jobs import MADE, REFUSED, submitted, tagged
from workers.ports import JobRecord, JobState
from workers.rules import outdated

logger = logging.getLogger("stillhouse.api")

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[may_read, may_submit])

_ON_A_JOB = ("UNAUTHENTICATED", "NOT_FOUND", "STORE_UNAVAILABLE", "STORAGE_FULL")
_CLONED = {"spec": {"budget": {"macs": "15%"}, "search": {"trials": 48}}}
_CHANGED = {"labels": {"team": "vision"}, "priority": 5, "spec": {"search": {"trials": 48}}}
_PATCHED = {
    "labels": {"type": "object", "additionalProperties": {"type": ["string", "null"], "maxLength": 256}},
    "priority": {"type": "integer", "minimum": -1000, "maximum": 1000},
    "spec": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "budget": {"type": "object"},
            "search": {
                "type": "object",
                "additionalProperties": False,
                "properties": {"trials": {"type": "integer", "minimum": 1, "maximum": 100_000}},
            },
        },
    },
}
_TAG = re.compile(r'"([0-9]{1,9})"')

IfMatch = Annotated[
    str | None,
    Header(
        pattern=r'^(\*|(W/)?"[^"]{0,64}"( *, *(W/)?"[^"]{0,64}")*)$',
        max_length=512,
        description="The ETag of the job as you know it; with another one the answer is 412 and nothing is changed.",
        examples=['"3"'],
    ),
]


@router.post(
    "/{job_id}:pause", operation_id="jobs.pause", responses=answers(*_ON_A_JOB, "ILLEGAL_TRANSITION", example=JOB)
)
def pause(job_id: JobId, jobs: JobsDep, response: Response) -> JobDocument:
    """
    Ask for a pause. A job under way is given back within seconds and keeps all that it has come to but the trainings
    that were going; until it is resumed, nothing is done for it. Asking again changes nothing.
    """
    return tagged(jobs, jobs.request_pause(job_id), response)


@router.post(
    "/{job_id}:resume", operation_id="jobs.resume", responses=answers(*_ON_A_JOB, "ILLEGAL_TRANSITION", example=JOB)
)
def resume(job_id: JobId, jobs: JobsDep, response: Response) -> JobDocument:
    """Let a paused job go on where it was; one that is not paused stays as it is."""
    return tagged(jobs, jobs.resume(job_id), response)


@router.patch(
    "/{job_id}",
    operation_id="jobs.update",
    responses=answers(
        *_ON_A_JOB,
        *REFUSED,
        "MALFORMED_JSON",
        "BODY_TOO_LARGE",
        "UNSUPPORTED_MEDIA_TYPE",
        "ILLEGAL_TRANSITION",
        "CONFLICT",
        "OUTDATED",
        example=QUEUED_JOB,
    ),
    openapi_extra=patch_body(
        _PATCHED, _CHANGED, "Of the job `labels`, `priority`, `spec.budget` and `spec.search.trials`"
    ),
)
async def update(
    job_id: JobId,
    patch: MergePatch,
    jobs: JobsDep,
    asking: AskingDep,
    response: Response,
    if_match: IfMatch = None,
) -> JobDocument:
    """
    Change a job by a merge patch (RFC 7396) of its document.

    Labels may change always, and the priority until its end. Trials may become more until the search is over, and the
    search that is going on takes notice. The budget may change until the job is first taken: what it is searched in is
    made for it, so from then on a clone is the way.
    """
    record = await run_in_threadpool(jobs.job, job_id)
    revisions = _revisions(if_match)
    if revisions is not None and record.revision not in revisions:
        raise outdated(job_id, min(revisions, default=0), record.revision)
    before = read_spec(record.spec)
    after = _changed(record, patch)
    if (after.budget, after.search) != (before.budget, before.search):
        await _check(asking, after)
    found = await run_in_threadpool(jobs.change, job_id, after, revision=record.revision)
    return await run_in_threadpool(tagged, jobs, found, response)


@router.post("/{job_id}:retry", operation_id="jobs.retry", status_code=201, response_model=JobDocument, responses=MADE)
async def retry(job_id: JobId, key: IdempotencyKey, jobs: JobsDep, asking: AskingDep) -> Response:
    """
    Submit a job that failed or was cancelled once more, as it was. The old one stays as it is; what it had trained is
    found again and not trained twice.
    """
    record = await run_in_threadpool(jobs.job, job_id)
    if record.state not in (JobState.FAILED, JobState.CANCELLED):
        raise IllegalTransition(
            f"{job_id} is {record.state}; only a job that failed or was cancelled is retried. Clone it instead."
        )
    spec = read_spec(record.spec)
    await asking.check(spec)
    return await run_in_threadpool(submitted, jobs, spec, key, parent=job_id, action="jobs.retry")


@router.post(
    "/{job_id}:clone",
    operation_id="jobs.clone",
    status_code=201,
    response_model=JobDocument,
    responses=MADE,
    openapi_extra=patch_body(
        {"spec": {"type": "object"}}, _CLONED, "What is to be different, as a merge patch of the job", required=False
    ),
)
async def clone(job_id: JobId, patch: OptionalPatch, key: IdempotencyKey, jobs: JobsDep, asking: AskingDep) -> Response:
    """Submit a job like this one, with the differences that the body names; without a body, the same once more."""
    record = await run_in_threadpool(jobs.job, job_id)
    unknown = patch.keys() - {"spec"}
    if unknown:
        raise InvalidBody([FieldError(f"/{_step(name)}", "UNKNOWN_FIELD", _ONLY_SPEC, ("spec",)) for name in unknown])
    spec = _spec(merged(record.spec, patch.get("spec", {})))
    await _check(asking, spec)
    return await run_in_threadpool(submitted, jobs, spec, key, parent=job_id, action="jobs.clone")


@router.delete(
    "/{job_id}",
    operation_id="jobs.delete",
    status_code=204,
    responses={
        **answers(*_ON_A_JOB, "ILLEGAL_TRANSITION"),
        204: {"description": "It is gone, and its files with it"},
    },
)
def delete(job_id: JobId, jobs: JobsDep, artifacts: ArtifactsDep) -> None:
    """Take out a job that has ended, with its files. What other jobs share with it, such as its teacher, stays."""
    record = jobs.delete(job_id)
    for file in record.files:
        if file.artifact.key.startswith(f"jobs/{job_id}/"):
            try:
                artifacts.delete(file.artifact.key)
            except StoreUnavailable as error:  # the job is gone by now, and saying that nothing was changed is wrong
                logger.warning("the file %s of a deleted job stays: %s", file.artifact.key, error)


_ONLY_SPEC = "a clone differs from its job by its `spec`; put what is to be different there"
_CHANGEABLE = ("/labels", "/priority", "/spec/budget", "/spec/search/trials")


def merged(document: Any, patch: Any) -> Any:
    """`document` with `patch` applied to it, as RFC 7396 says: null takes a member out, lists are replaced whole."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(document) if isinstance(document, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def _changed(record: JobRecord, patch: Mapping[str, Any]) -> JobSpec:
    """The spec that the job has after `patch`. Raises `InvalidSpec` when that is none, or more would change."""
    faults = [
        FieldError(pointer, "NOT_CHANGEABLE", _NOT_CHANGEABLE, _CHANGEABLE)
        for pointer in _leaves(patch)
        if not any(pointer == allowed or pointer.startswith(f"{allowed}/") for allowed in _CHANGEABLE)
    ]
    faults += [
        FieldError(pointer, "INVALID_VALUE", "a job has one; write a value, or leave it out")
        for pointer in ("/priority", "/spec/budget", "/spec/search/trials")
        if _gone(patch, pointer.split("/")[1:])
    ]
    if faults:
        raise InvalidBody(faults)
    inside = {"labels": patch.get("labels", {}), "priority": patch.get("priority", record.spec["priority"])}
    if inside["labels"] is None:
        inside["labels"] = dict.fromkeys(record.spec["labels"])
    return _spec(merged(record.spec, {**patch.get("spec", {}), **inside}), outside=("labels", "priority"))


_NOT_CHANGEABLE = "this does not change once a job is submitted; clone the job with it"


def _leaves(patch: Any, pointer: str = "") -> list[str]:
    """Pointers of all that a patch says; an object that says nothing says nothing."""
    if isinstance(patch, Mapping):
        return [leaf for name, value in patch.items() for leaf in _leaves(value, f"{pointer}/{_step(name)}")]
    return [pointer]


def _gone(patch: Any, path: list[str]) -> bool:
    for step in path:
        if not isinstance(patch, Mapping) or step not in patch:
            return False
        patch = patch[step]
    return patch is None


def _spec(document: object, *, outside: tuple[str, ...] = ()) -> JobSpec:
    """The spec; mistakes are told by where they stand in the job's document, in which `outside` stands not in it."""
    try:
        return read_spec(document)
    except InvalidSpec as error:
        stays = tuple(f"/{name}" for name in outside)
        raise InvalidSpec(
            [found if found.pointer.startswith(stays) else found.under("/spec") for found in error.errors]
        ) from None


async def _check(asking: Questions, spec: JobSpec) -> None:
    """As `Questions.check`; what is wrong is told by where it stands in the job's document."""
    try:
        await asking.check(spec)
    except UserError as error:
        raise error.under("/spec") from None


def _step(name: str) -> str:
    return name[:256].replace("~", "~0").replace("/", "~1")


def _revisions(if_match: str | None) -> frozenset[int] | None:
    """Those that a job may be at; None for any. A weak tag matches nothing (RFC 9110, 13.1.1)."""
    if if_match is None or if_match.strip() == "*":
        return None
    strong = (tag.strip() for tag in if_match.split(","))
    return frozenset(int(found[1]) for tag in strong if (found := _TAG.fullmatch(tag)))
