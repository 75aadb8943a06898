"""What is drawn of a job, and its log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from search.errors import NotFound, did_you_mean
from search.trial import State
from service.auth import may_read
from service.deps import ArtifactsDep, JobId, JobsDep, TrialId, ViewsDep
from service.description import answers
from service.documents import log_line
from service.examples import CURVE, LOG, PARETO, SENSITIVITY, TIMELINE
from service.filters import Path
from service.findings import on_record
from service.pictures import CurveDocument, ParetoDocument, Seen, SensitivityDocument, axes, curve, harms_of, pareto
from service.pictures import sensitivity as effects
from service.problems import Refusal
from service.schemas import AtRung, Axes, LogPage, LogPaging, TimelinePaging
from service.timeline import KINDS, TimelineDocument
from service.timeline import timeline as told
from workers.ports import Phase
from workers.results import LibraryResult

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[may_read])

_ON_A_JOB = ("UNAUTHENTICATED", "NOT_FOUND", "STORE_UNAVAILABLE")


@router.get(
    "/{job_id}/trials/{trial_id}/curve", operation_id="jobs.curve", responses=answers(*_ON_A_JOB, example=CURVE)
)
def get_curve(job_id: JobId, trial_id: TrialId, jobs: JobsDep, views: ViewsDep) -> CurveDocument:
    """The learning curve of a candidate: its score at every rung, and what was told between them."""
    record, trial = jobs.job(job_id), views.trial(job_id, trial_id)
    return curve(trial, views.told(job_id, ["PROGRESS"], number=trial.number), record)


@router.get(
    "/{job_id}/pareto",
    operation_id="jobs.pareto",
    responses=answers(*_ON_A_JOB, "INVALID_PARAMETER", example=PARETO),
)
def get_pareto(job_id: JobId, asked: Annotated[Axes, Query()], jobs: JobsDep, views: ViewsDep) -> ParetoDocument:
    """
    Two numbers of every scored candidate against each other, such as accuracy and macs: all that no other beats in
    both, a sample of the others, the teacher, and the limits.
    """
    record = jobs.job(job_id)
    known = axes(record)
    for parameter, name in (("x", asked.x), ("y", asked.y)):
        if name not in known and len(known) > 2:  # before the survey nobody knows what there will be
            message = f"trials of this job have no `{name}`{did_you_mean(name, known)}"
            raise Refusal("INVALID_PARAMETER", message, parameter=parameter, allowed=known)
    fields: list[Path] = [("id",), ("number",), ("state",), ("rung",), _field(asked.x), _field(asked.y)]
    seen = [Seen(*row) for row in views.scored(job_id, fields, asked.rung)]
    return pareto(record, seen, asked.x, asked.y, asked.rung)


def _field(name: str) -> Path:
    return (name,) if name in ("accuracy", "kl") else ("cost", name)


@router.get(
    "/{job_id}/sensitivity",
    operation_id="jobs.sensitivity",
    responses=answers(*_ON_A_JOB, "INVALID_PARAMETER", example=SENSITIVITY),
)
def get_sensitivity(
    job_id: JobId, asked: Annotated[AtRung, Query()], jobs: JobsDep, views: ViewsDep, artifacts: ArtifactsDep
) -> SensitivityDocument:
    """
    What each choice at each site goes with: the mean accuracy of the trials that made it, and the harm that was
    measured of it alone where the job has a library.
    """
    library = on_record(jobs.job(job_id), Phase.LIBRARY, LibraryResult)
    harms = None
    if library is not None:
        try:
            harms = harms_of(artifacts.get(library.index))
        except NotFound:
            harms = None
    scored = views.scored(job_id, [("state",), ("choices",), ("accuracy",)], asked.rung)
    return effects(
        asked.rung, [(choices, accuracy) for state, choices, accuracy in scored if state != State.FAILED], harms
    )


@router.get(
    "/{job_id}/timeline",
    operation_id="jobs.timeline",
    responses=answers(*_ON_A_JOB, "INVALID_PARAMETER", example=TIMELINE),
)
def get_timeline(
    job_id: JobId, paging: Annotated[TimelinePaging, Query()], jobs: JobsDep, views: ViewsDep
) -> TimelineDocument:
    """When each phase went on, and when and where each trial of the search was worked on, and how that ended."""
    return told(jobs.job(job_id), views.told(job_id, KINDS), after=paging.after, limit=paging.size)


@router.get(
    "/{job_id}/logs",
    operation_id="jobs.logs",
    response_model=LogPage,
    responses=answers(*_ON_A_JOB, "INVALID_PARAMETER", example={"lines": [LOG], "next_after": 41}),
)
def get_logs(job_id: JobId, paging: Annotated[LogPaging, Query()], views: ViewsDep) -> Response:
    """
    What the drivers of a job have logged, in order; the newest 10,000 lines are kept. More comes while the job goes on:
    ask again with `next_after`.
    """
    found = views.logs(job_id, after=paging.after, limit=paging.size, trial=paging.trial, level=paging.level)
    page = LogPage(lines=[log_line(line) for line in found], next_after=found[-1].seq if found else paging.after)
    return Response(page.model_dump_json(), media_type="application/json")
