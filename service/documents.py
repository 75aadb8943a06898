"""
How a job and its trials are told to people and programs.

One document, whoever asks: `GET /v1/jobs/{id}`, `stillhouse show --json` and `stillhouse local --json` print the same.
Pure functions of the record; models of what leaves us have no defaults, so every field is always there.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import AwareDatetime

from search.trial import State, Trial
from service.findings import (
    Cost,
    Document,
    EvidenceDocument,
    PreparationDocument,
    SkippedDocument,
    evidence,
    on_record,
    preparation,
    skipped_images,
)
from service.students import StudentDocument, students_of
from workers.events import Event
from workers.ports import JobRecord, JobState, Level, LoggedLine, Phase, StoredFile
from workers.results import (
    ElasticResult,
    FinalistsResult,
    LibraryResult,
    PlanResult,
    SearchResult,
    StructureResult,
    SurveyResult,
    TeacherResult,
)
from workers.standings import Standing


class TeacherMetrics(Document):
    accuracy: float
    """On the test set, 0..1; of a detector mean average precision."""
    validation_accuracy: float
    shots: dict[str, float]
    """
    Of long-tailed data: accuracy on the test set among classes with `many` training images (more than 100), `medium`
    (20 to 100) and `few` (fewer than 20), a group without images left out; else empty.
    """
    detection: dict[str, float]
    """
    Of a detector, on the test set: `ap50`, average precision at an overlap of .5, and `miss_rate`, the log-average miss
    rate, of which less is better; else empty.
    """


class TeacherDocument(Document):
    name: str
    source: str | None
    """
    `trained` by this job, `kept` from an earlier one, or `weights` from a file; `untrained` in a job without a teacher,
    of the network that students are cut from; null until it is there.
    """
    metrics: TeacherMetrics | None
    """Null until it is there, and in a job without a teacher."""
    cost: Cost | None
    """By metric; null until the network has been surveyed."""


class TrialCounts(Document):
    total: int
    pending: int
    running: int
    completed: int
    """Scored at the last rung."""
    promoted: int
    """Scored at more than one rung, whatever became of them then."""
    known: int
    """Of which every score was known from before: nothing was trained for them."""
    stopped: int
    failed: int
    cancelled: int


class BestDocument(Document):
    """The best trial so far: the highest rung first, then accuracy on validation."""

    trial: str
    number: int
    rung: int
    accuracy: float
    kl: float
    cost: Cost


class Timing(Document):
    seconds: float | None
    """From the first claim to the end, or to now; null while the job is queued."""
    phases: dict[str, float]
    """Seconds by finished phase."""


class ProgressDocument(Document):
    """How far the phase under way has come, in units of its own: epochs, trials or steps."""

    phase: str
    done: int
    total: int


class ArtifactDocument(Document):
    name: str
    media_type: str
    bytes: int
    sha256: str
    href: str


class Links(Document):
    self: str
    trials: str
    events: str
    artifacts: str
    cancel: str
    pause: str
    resume: str
    retry: str
    clone: str


class FrontDocument(Document):
    """
    How much of what could be wished for is granted: the volume between the front and a network that guesses and costs
    as much as the teacher, 0 to 1, in shares of accuracy above chance and of the teacher's costs.
    """

    costs: list[str]
    course: list[float]
    """After each scored trial, in order of number."""
    hypervolume: float | None
    """Of the students themselves, on validation; null until they are trained."""


class JobDocument(Document):
    id: str
    state: JobState
    reason: str
    """Why it ended as it did; empty when it succeeded or has not ended."""
    phase: str | None
    """The phase entered last."""
    created_at: AwareDatetime
    started_at: AwareDatetime | None
    ended_at: AwareDatetime | None
    labels: dict[str, str]
    priority: int
    cancel_requested: bool
    pause_requested: bool
    paused: bool
    """Whether nothing is done for it because of that; a driver that has it takes some seconds to give it back."""
    claims: int
    """How often a driver has taken the job: 1 for one that was never interrupted."""
    revision: int
    """How often its user has asked for something else of it; the ETag of answers, and what If-Match is held against."""
    parent: str | None
    """The job that it is a repeat or a variant of."""
    spec: dict[str, Any]
    """As submitted, every default written out."""
    skipped_images: SkippedDocument | None
    """Null where all could be used, and until they were opened, which is before the teacher is there."""
    teacher: TeacherDocument
    student: StudentDocument | None
    """The first of `students`; null until they are exported."""
    students: list[StudentDocument]
    """One for each level of a ladder, loosest first; those of a front, dearest first; one for any other job."""
    levels: list[Cost]
    """The limits of every level that is searched, worked out, loosest first; empty until the survey is done."""
    front: FrontDocument | None
    """Of a job that looks for one, when its search is done."""
    preparation: PreparationDocument
    trials: TrialCounts
    best: BestDocument | None
    evidence: EvidenceDocument | None
    """Null before the search is over."""
    progress: ProgressDocument | None
    timing: Timing
    artifacts: list[ArtifactDocument]
    links: Links


class ScoreDocument(Document):
    rung: int
    step: int
    accuracy: float
    kl: float
    """Mean KL(teacher || network) on validation, in nats; 0 in a job without a teacher."""
    seconds: float
    """Of training and looking; 0 for a score that was known."""
    cached: bool
    """Whether it was known: an identical network had been scored in an identical setting, by this job or another."""


class TrialDocument(Document):
    id: str
    number: int
    state: State
    reason: str
    attempt: int
    key: str
    """Names the candidate: equal keys, equal networks."""
    choices: dict[str, int]
    """By site."""
    cost: Cost
    scores: list[ScoreDocument]
    """One a rung, in order."""


class EventDocument(Document):
    seq: int
    """1, 2, 3, ... within the job, without gaps."""
    kind: str
    at: AwareDatetime
    data: dict[str, Any]


class LogLine(Document):
    seq: int
    """1, 2, 3, ... within the job."""
    at: AwareDatetime
    level: Level
    logger: str
    trial: str | None
    """The id of the trial it is about; null where it is about none, or does not say."""
    message: str
    """As it was logged, with any traceback; secrets are taken out, and what is longer than 4,000 characters is cut."""


def job_document(record: JobRecord, standing: Standing, *, now: datetime | None = None) -> JobDocument:
    """
    All that is known of a job.

    `standing` is what its trials come to; `now` measures how long an unfinished job has been going, and is not needed
    for others.
    """
    students = students_of(record, standing.trials)
    surveyed = on_record(record, Phase.SURVEY, SurveyResult)
    return JobDocument(
        id=record.id,
        state=record.state,
        reason=record.reason,
        phase=record.phase,
        created_at=record.created_at,
        started_at=record.started_at,
        ended_at=record.ended_at,
        labels=record.spec["labels"],
        priority=record.spec["priority"],
        cancel_requested=record.cancel_requested,
        pause_requested=record.pause_requested,
        paused=record.pause_requested and not record.leased,
        claims=record.claims,
        revision=record.revision,
        parent=record.parent,
        spec=dict(record.spec),
        skipped_images=skipped_images(on_record(record, Phase.TEACHER, TeacherResult)),
        teacher=_teacher(record),
        student=students[0] if students else None,
        students=students,
        levels=[dict(budget.limits) for budget in surveyed.budgets] if surveyed else [],
        front=_front(record),
        preparation=preparation(
            on_record(record, Phase.LIBRARY, LibraryResult),
            on_record(record, Phase.PLAN, PlanResult),
            on_record(record, Phase.ELASTIC, ElasticResult),
            on_record(record, Phase.STRUCTURE, StructureResult),
        ),
        trials=_counts(standing),
        best=_best(standing),
        evidence=evidence(
            on_record(record, Phase.SEARCH, SearchResult), on_record(record, Phase.FINALISTS, FinalistsResult)
        ),
        progress=_progress(record, standing),
        timing=_timing(record, now),
        artifacts=[artifact_document(record.id, stored) for stored in record.files],
        links=_links(record.id),
    )


def trial_document(trial: Trial) -> TrialDocument:
    return TrialDocument(
        id=trial.id,
        number=trial.number,
        state=trial.state,
        reason=trial.reason,
        attempt=trial.attempt,
        key=trial.key,
        choices=dict(trial.choices),
        cost=dict(trial.cost),
        scores=[ScoreDocument.model_validate(score) for score in trial.scores],
    )


def log_line(line: LoggedLine) -> LogLine:
    return LogLine.model_validate(line)


def event_document(event: Event) -> EventDocument:
    return EventDocument(seq=event.seq, kind=event.kind, at=event.at, data=dict(event.data))


def artifact_document(job_id: str, stored: StoredFile) -> ArtifactDocument:
    return ArtifactDocument(
        name=stored.name,
        media_type=stored.media_type,
        bytes=stored.artifact.bytes,
        sha256=stored.artifact.sha256,
        href=f"/v1/jobs/{job_id}/artifacts/{quote(stored.name)}/content",
    )


def _teacher(record: JobRecord) -> TeacherDocument:
    taught = on_record(record, Phase.TEACHER, TeacherResult)
    surveyed = on_record(record, Phase.SURVEY, SurveyResult)
    return TeacherDocument(
        name=record.spec["teacher"]["name"],
        source=taught.source if taught else None,
        metrics=_metrics(taught) if taught else None,
        cost=dict(surveyed.cost) if surveyed else None,
    )


def _metrics(taught: TeacherResult) -> TeacherMetrics | None:
    if taught.accuracy is None or taught.validation_accuracy is None:
        return None
    return TeacherMetrics(
        accuracy=taught.accuracy,
        validation_accuracy=taught.validation_accuracy,
        shots=dict(taught.shots),
        detection=dict(taught.detection),
    )


def _front(record: JobRecord) -> FrontDocument | None:
    searched = on_record(record, Phase.SEARCH, SearchResult)
    chosen = on_record(record, Phase.FINALISTS, FinalistsResult)
    front = record.spec["budget"].get("front")
    if front is None or searched is None:
        return None
    return FrontDocument(
        costs=front["costs"],
        course=list(searched.hypervolume),
        hypervolume=chosen.hypervolume if chosen else None,
    )


def _counts(standing: Standing) -> TrialCounts:
    return TrialCounts(
        total=standing.total,
        promoted=standing.promoted,
        known=standing.known,
        **{state.lower(): count for state, count in standing.counts.items()},
    )


def _best(standing: Standing) -> BestDocument | None:
    best = standing.best
    if best is None or best.score is None:
        return None
    score = best.score
    return BestDocument(
        trial=best.id,
        number=best.number,
        rung=score.rung,
        accuracy=score.accuracy,
        kl=score.kl,
        cost=dict(best.cost),
    )


def _progress(record: JobRecord, standing: Standing) -> ProgressDocument | None:
    if record.phase is not Phase.SEARCH or record.state.terminal:
        return None
    total = max(record.spec["search"]["trials"], standing.total)  # more when the search was sent back
    return ProgressDocument(phase=record.phase, done=standing.settled, total=total)


def _timing(record: JobRecord, now: datetime | None) -> Timing:
    until = record.ended_at or now
    seconds = None
    if record.started_at is not None and until is not None:
        seconds = max((until - record.started_at).total_seconds(), 0.0)
    phases = {phase.value: known.seconds for phase, known in record.phases.items() if known.seconds is not None}
    return Timing(seconds=seconds, phases=phases)


def _links(job_id: str) -> Links:
    this = f"/v1/jobs/{job_id}"
    return Links(
        self=this,
        trials=f"{this}/trials",
        events=f"{this}/events",
        artifacts=f"{this}/artifacts",
        cancel=f"{this}:cancel",
        pause=f"{this}:pause",
        resume=f"{this}:resume",
        retry=f"{this}:retry",
        clone=f"{this}:clone",
    )
