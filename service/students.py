"""The students of a job, as they are told: what they reach, what they cost, and whether that is what was asked for."""

from __future__ import annotations

from collections.abc import Mapping

from search.budget import Budget, Verdict
from service.findings import Cost, Document, RivalDocument, on_record, rival
from workers.finals import reaches
from workers.ports import JobRecord, Phase
from workers.results import ExportResult, FinalistsResult, SurveyResult, TimeResult, student_folder
from workers.standings import Placed


class StudentMetrics(Document):
    accuracy: float
    """On the test set, 0..1, looked at once; of a detector mean average precision."""
    validation_accuracy: float
    kl: float
    """Mean KL(teacher || student) on the test set, in nats; 0 in a job without a teacher."""
    shots: dict[str, float]
    detection: dict[str, float]
    """Both as the teacher's."""


class VerdictDocument(Document):
    metric: str
    limit: int | float
    value: int | float
    fits: bool
    at_least: bool
    """Whether the limit is the least value allowed, as of a throughput; else it is the largest."""


class TimeDocument(Document):
    """One measured metric of a student: predicted during the search, measured on the exported file."""

    metric: str
    predicted: int
    """In the metric's unit, as its cost."""
    measured: int
    """What the verdict is about. Where the limit is relative, the measured ratio times the teacher's cost."""
    student: int
    """Nanoseconds a batch of the exported file."""
    teacher: int
    """The same of the teacher, measured in turns with the student."""
    ratio: float
    """The student's time over the teacher's: the median over all turns, with `min` least over least."""
    low: float
    high: float
    """`ratio` lies from `low` to `high`, as that of half of all turns does."""
    samples: int
    """How often the student was timed."""
    environment: dict[str, str | int]
    """Runtime, threads, processor and versions."""


class StudentDocument(Document):
    level: int
    """1 for the loosest level of a ladder, and for a job without one."""
    folder: str
    """What the names of its files begin with, among the artifacts: `student`, or `student-1`, `student-2`, ..."""
    trial: str
    number: int
    metrics: StudentMetrics
    cost: Cost
    """Counted on the exported network, and measured on its file where times are limited."""
    verdicts: list[VerdictDocument]
    """One for each limit of its level, and one for an accuracy to be kept, which is judged on validation."""
    bytes: int
    """Size of weights.safetensors."""
    times: list[TimeDocument]
    """One for each measured metric."""
    rival: RivalDocument | None
    """Null where no other finalist keeps the budget, and for a job that asks for the cheapest or for a front."""


def named(record: JobRecord) -> set[str]:
    """The ids of the trials that `students_of` asks for."""
    chosen = on_record(record, Phase.FINALISTS, FinalistsResult)
    exported = on_record(record, Phase.EXPORT, ExportResult)
    finalists = {one.trial for one in chosen.finalists} if chosen else set()
    return finalists | ({student.trial for student in exported.students} if exported else set())


def students_of(record: JobRecord, trials: Mapping[str, Placed]) -> list[StudentDocument]:
    """
    Empty until they are exported: before that nothing was measured on what will be deployed. `trials` are by id, and
    hold those that are `named`.
    """
    surveyed = on_record(record, Phase.SURVEY, SurveyResult)
    chosen = on_record(record, Phase.FINALISTS, FinalistsResult)
    exported = on_record(record, Phase.EXPORT, ExportResult)
    if surveyed is None or chosen is None or exported is None:
        return []
    # With an accuracy to be kept, or a front, the levels are the search's own, and what students must keep the limits.
    own = chosen.floor is not None or chosen.hypervolume is not None
    budgets = (Budget(surveyed.limits),) * len(chosen.chosen) if own else surveyed.budgets
    finalists = {finalist.trial: finalist.accuracy for finalist in chosen.finalists}
    students = []
    for level, (winner, student, budget) in enumerate(zip(chosen.chosen, exported.students, budgets, strict=True)):
        verdicts = [*budget.judge(student.cost)]
        validation = finalists[student.trial]
        if chosen.floor is not None:
            kept = reaches(validation, chosen.floor)
            verdicts.append(Verdict("accuracy", chosen.floor, validation, kept, at_least=True))
        students.append(
            StudentDocument(
                level=level + 1,
                folder=student_folder(level, len(budgets)),
                trial=student.trial,
                number=trials[student.trial].number,
                metrics=StudentMetrics(
                    accuracy=winner.accuracy,
                    validation_accuracy=validation,
                    kl=winner.kl,
                    shots=dict(winner.shots),
                    detection=dict(winner.detection),
                ),
                cost=dict(student.cost),
                verdicts=[VerdictDocument.model_validate(verdict) for verdict in verdicts],
                bytes=student.bytes,
                times=[_time(metric, found) for metric, found in student.times.items()],
                rival=None
                if own
                else rival(
                    student.trial, chosen, {trial.id: trial for trial in trials.values() if budget.holds(trial.cost)}
                ),
            )
        )
    return students


def _time(metric: str, found: TimeResult) -> TimeDocument:
    pair = found.comparison
    return TimeDocument(
        metric=metric,
        predicted=found.predicted,
        measured=found.measured,
        student=pair.first.nanoseconds,
        teacher=pair.second.nanoseconds,
        ratio=pair.ratio,
        low=pair.low,
        high=pair.high,
        samples=pair.first.samples,
        environment=dict(pair.first.environment),
    )
