"""Jobs: submit, look, cancel."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from search.spec import JobSpec, read_spec
from service.auth import may_read, may_submit
from service.deps import AskingDep, IdempotencyKey, JobId, JobsDep, JsonBody, TrialId, ViewsDep
from service.description import answers, shown, spec_body
from service.documents import JobDocument, TrialDocument, job_document, trial_document
from service.examples import JOB, PLAN, QUEUED_JOB, SPEC, TRIAL
from service.filters import JOBS, TRIALS, By
from service.findings import Document
from service.lookout import Lookout
from service.routes.creation import creation, made
from service.routes.lists import Asked
from service.schemas import JobPage, JobPaging, Plan, Submission, TrialPage, TrialPaging, Waiting
from service.store.ports import Jobs
from workers.ports import JobRecord

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[may_read])

NEWEST = (By(("created_at",), True),)
_PATIENCE_SECONDS = 1.0
"""Between looks whether a waiting client is still there."""
_ON_A_JOB = ("UNAUTHENTICATED", "NOT_FOUND", "STORE_UNAVAILABLE")

REFUSED = (
    "INVALID_SPEC",
    "UNKNOWN_NAME",
    "BUDGET_IMPOSSIBLE",
    "DATASET_UNUSABLE",
    "WEIGHTS_UNUSABLE",
    "UNSUPPORTED_NETWORK",
    "INVALID_PARAMETER",
    "BUSY",
)
"""What may be wrong with a spec, or with the time."""
_NEW = creation(
    "job",
    QUEUED_JOB,
    *("get", "events", "cancel", "pause", "resume", "trials", "clone", "delete"),
    ETag="The job's `revision`, for If-Match",
)
_NOT_MADE = (
    "MALFORMED_JSON",
    "MALFORMED_REQUEST",
    "UNAUTHENTICATED",
    "BODY_TOO_LARGE",
    "UNSUPPORTED_MEDIA_TYPE",
    *REFUSED,
    "IDEMPOTENCY_KEY_REUSED",
    "BEYOND_QUOTA",
    "QUOTA_QUEUED_JOBS",
    "QUOTA_STORED_BYTES",
    "QUOTA_CPU_SECONDS_PER_DAY",
    "QUOTA_GPU_SECONDS_PER_DAY",
    "STORE_UNAVAILABLE",
    "STORAGE_FULL",
)
MADE: dict[int | str, dict[str, Any]] = {**_NEW, **answers(*_NOT_MADE, "NOT_FOUND", "ILLEGAL_TRANSITION")}
"""`responses` of operations that make a job from another one."""


@router.post(
    "",
    operation_id="jobs.create",
    dependencies=[may_submit],
    status_code=201,
    response_model=JobDocument,
    responses={
        200: {
            "model": Plan,
            "description": "The plan, with `validate_only`",
            "content": {"application/json": {"example": shown(PLAN)}},
        },
        **_NEW,
        **answers(*_NOT_MADE),
    },
    openapi_extra=spec_body(SPEC),
)
async def create(
    submission: Annotated[Submission, Query()],
    document: JsonBody,
    key: IdempotencyKey,
    jobs: JobsDep,
    asking: AskingDep,
) -> Response:
    """
    Submit a job: a teacher, a dataset and a budget.

    It is checked first, names, options and whether the budget can be reached, and is on disk when this answers. With
    `validate_only` it is only checked, and the plan comes back.
    """
    spec = read_spec(document)
    plan = await asking.check(spec)
    if submission.validate_only:
        return _answer(Plan.model_validate(plan), 200)
    return await run_in_threadpool(submitted, jobs, spec, key)


@router.get(
    "",
    operation_id="jobs.list",
    response_model=JobPage,
    responses=answers(
        "UNAUTHENTICATED", "INVALID_PARAMETER", "STORE_UNAVAILABLE", example={"jobs": [JOB], "next_page_token": ""}
    ),
)
def list_jobs(paging: Annotated[JobPaging, Query()], views: ViewsDep) -> Response:
    """
    Jobs, newest first unless asked for otherwise, a page at a time. Jobs submitted meanwhile do not shift the pages.

    `filter` and `order_by` know these fields: `id`, `state`, `phase`, `priority`, `claims`, `created_at`, `started_at`,
    `ended_at`, `cancel_requested`, `teacher`, `dataset`, `strategy` and `labels.NAME`.
    """
    asked, now = Asked.read(paging, JOBS, NEWEST), datetime.now(UTC)
    page = views.jobs(asked.listing)
    shown = [job_document(record, standing, now=now) for record, standing in page.items]
    return _answer(JobPage(jobs=shown, next_page_token=asked.token(page.after)), 200)


@router.get("/{job_id}", operation_id="jobs.get", responses=answers(*_ON_A_JOB, "INVALID_PARAMETER", example=JOB))
async def get(
    request: Request, job_id: JobId, waiting: Annotated[Waiting, Query()], jobs: JobsDep, response: Response
) -> JobDocument:
    """
    One job, and all that is known of it. With `wait` the answer comes when the job has ended, or after so many seconds.
    """
    # Not a plain `def`: whoever waits here must not hold one of the threads that answer everybody else.
    deadline = time.monotonic() + waiting.wait
    record = await run_in_threadpool(jobs.job, job_id)
    lookout: Lookout = request.app.state.lookout
    with lookout.watching(job_id) as watch:
        while not record.state.terminal and not request.app.state.draining.is_set():
            left = deadline - time.monotonic()
            if left <= 0 or await request.is_disconnected():
                break
            await watch.news(min(left, _PATIENCE_SECONDS))
            record = await run_in_threadpool(jobs.job, job_id)
    return await run_in_threadpool(tagged, jobs, record, response)


@router.post(
    "/{job_id}:cancel",
    operation_id="jobs.cancel",
    dependencies=[may_submit],
    responses=answers(*_ON_A_JOB, "STORAGE_FULL", example=JOB),
)
def cancel(job_id: JobId, jobs: JobsDep, response: Response) -> JobDocument:
    """
    Ask for the end of a job. A queued one ends at once, one under way as soon as its driver has stopped; one that has
    ended stays as it is. Asking again changes nothing.
    """
    return tagged(jobs, jobs.request_cancel(job_id), response)


@router.get(
    "/{job_id}/trials",
    operation_id="jobs.trials",
    response_model=TrialPage,
    responses=answers(*_ON_A_JOB, "INVALID_PARAMETER", example={"trials": [TRIAL], "next_page_token": ""}),
)
def list_trials(job_id: JobId, paging: Annotated[TrialPaging, Query()], views: ViewsDep) -> Response:
    """
    The candidates of a job and how they scored, by number unless asked for otherwise, a page at a time.

    `filter` and `order_by` know these fields: `id`, `number`, `state`, `attempt`, `key`; of the last score `rung`,
    `step`, `accuracy`, `kl`, `seconds` and `cached`; `cost.NAME`, for which `macs`, `flops`, `params`, `weight_bytes`,
    `activation_bytes`, `latency` and `throughput` are short; and `choices.SITE`, with quotes around a site that has
    dots in its name.
    """
    asked = Asked.read(paging, TRIALS, ())
    page = views.trials(job_id, asked.listing)
    shown = [trial_document(trial) for trial in page.items]
    return _answer(TrialPage(trials=shown, next_page_token=asked.token(page.after)), 200)


@router.get("/{job_id}/trials/{trial_id}", operation_id="jobs.trial", responses=answers(*_ON_A_JOB, example=TRIAL))
def get_trial(job_id: JobId, trial_id: TrialId, views: ViewsDep) -> TrialDocument:
    """One candidate."""
    return trial_document(views.trial(job_id, trial_id))


def submitted(
    jobs: Jobs, spec: JobSpec, key: str | None, *, parent: str | None = None, action: str = "jobs.create"
) -> Response:
    """The answer to whoever submits `spec`; each `action`, the operation, has idempotency keys of its own."""
    if key is not None and parent is not None:
        key = f"{action} {parent} {key}"  # no key of a client's has a blank in it
    record, created = jobs.submit(
        spec, idempotency_key=key, fingerprint=_fingerprint(spec) if key else None, parent=parent, action=action
    )
    return made(_shown(jobs, record), f"/v1/jobs/{record.id}", new=created, ETag=_tag(record))


def tagged(jobs: Jobs, record: JobRecord, response: Response) -> JobDocument:
    """The job's document, its revision put on the answer."""
    response.headers["ETag"] = _tag(record)
    return _shown(jobs, record)


def _tag(record: JobRecord) -> str:
    return f'"{record.revision}"'


def _shown(jobs: Jobs, record: JobRecord) -> JobDocument:
    return job_document(record, jobs.standings([record])[0], now=datetime.now(UTC))


def _answer(document: Document, status: int, headers: dict[str, str] | None = None) -> Response:
    return Response(document.model_dump_json(), status, headers, media_type="application/json")


def _fingerprint(spec: JobSpec) -> str:
    """Equal for bodies that ask for the same, however they are written."""
    return hashlib.sha256(json.dumps(spec.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
