"""The example that the API's description shows: one job from its submission to its student. Its numbers are made up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from search.spec import JobSpec, Pick, TeacherSpec
from search.trial import Score, State, Trial
from service.documents import event_document, job_document, log_line, trial_document
from service.pictures import Seen, curve, pareto, sensitivity
from service.timeline import timeline
from workers.events import Event, Kind
from workers.ports import Artifact, JobRecord, JobState, Level, LoggedLine, Phase, PhaseRecord, StoredFile
from workers.results import (
    ExportResult,
    FinalistResult,
    FinalistsResult,
    Result,
    SearchResult,
    SurveyResult,
    TeacherResult,
)
from workers.standings import standing_of

_BEGAN = datetime(2026, 1, 5, 9, 30, tzinfo=UTC)
_JOB, _TRIAL = "job_01ke7bq8k0f7m2s5v9x3y6z1ab", "trial_01ke7bqd10w8n4t6r2c5h7j9kd"
_COST = {"macs": 4_512_640, "flops": 9_025_280, "params": 121_384}
_TEACHER_COST = {"macs": 22_901_345, "flops": 45_802_690, "params": 624_106}

SPEC: dict[str, Any] = {
    "teacher": {"name": "small_resnet", "epochs": 12},
    "dataset": {"name": "cluttered_digits"},
    "budget": {"macs": "20%", "params": "200k"},
    "search": {"strategy": {"name": "planned"}, "trials": 24},
    "labels": {"team": "vision"},
}

_TRIAL_RECORD = Trial(
    id=_TRIAL,
    number=7,
    key="c3a1f0d2",
    choices={"stage1.width": 3, "stage2.block1.removal": 1},
    origin={"stage1.width": 4, "stage2.block1.removal": 1},
    cost=_COST,
    state=State.COMPLETED,
    scores=(Score(0, 40, 0.871, 0.31, 2.4), Score(1, 120, 0.902, 0.19, 4.9)),
)

_WEIGHTS = StoredFile(
    "student/weights.safetensors",
    "application/octet-stream",
    Artifact(
        "jobs/x/student/weights.safetensors",
        489_212,
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ),
)


def _record() -> JobRecord:
    results: dict[Phase, Result] = {
        Phase.TEACHER: TeacherResult(
            name="small_resnet",
            key="5d41402abc4b2a76b9719d91",
            source="trained",
            weights="teachers/5d41402abc4b2a76b9719d91.safetensors",
            accuracy=0.941,
            validation_accuracy=0.938,
        ),
        Phase.SURVEY: SurveyResult(
            space="7c211433f02071597741e6ff",
            sites=9,
            size=1.7e7,
            cost=_TEACHER_COST,
            smallest={"macs": 801_312, "flops": 1_602_624, "params": 15_210},
            limits={"macs": 4_580_269, "params": 200_000},
        ),
        Phase.SEARCH: SearchResult(finalists=(_TRIAL,)),
        Phase.FINALISTS: FinalistsResult(
            finalists=(FinalistResult(trial=_TRIAL, accuracy=0.929, kl=0.11),), winner=_TRIAL, accuracy=0.927, kl=0.12
        ),
        Phase.EXPORT: ExportResult(trial=_TRIAL, cost=_COST, bytes=489_212, deviation={"bundle": 0.0, "onnx": 3e-6}),
    }
    return JobRecord(
        id=_JOB,
        state=JobState.SUCCEEDED,
        reason="",
        spec=JobSpec.model_validate(SPEC).model_dump(mode="json"),
        created_at=_BEGAN,
        started_at=_BEGAN + timedelta(seconds=1),
        ended_at=_BEGAN + timedelta(seconds=131),
        cancel_requested=False,
        pause_requested=False,
        leased=False,
        claims=1,
        revision=0,
        events=412,
        parent=None,
        phase=Phase.EXPORT,
        phases={
            phase: PhaseRecord(_BEGAN, seconds, result.model_dump(mode="json"))
            for (phase, result), seconds in zip(results.items(), (41.0, 1.5, 58.0, 26.0, 3.5), strict=True)
        },
        files=[_WEIGHTS],
    )


def _queued() -> JobRecord:
    return JobRecord(
        id=_JOB,
        state=JobState.QUEUED,
        reason="",
        spec=JobSpec(
            teacher=TeacherSpec(name="small_resnet", epochs=12),
            dataset=Pick(name="cluttered_digits"),
            budget={"macs": "20%", "params": "200k"},
            labels={"team": "vision"},
        ).model_dump(mode="json"),
        created_at=_BEGAN,
        started_at=None,
        ended_at=None,
        cancel_requested=False,
        pause_requested=False,
        leased=False,
        claims=0,
        revision=0,
        events=1,
        parent=None,
        phase=None,
        phases={},
        files=[],
    )


JOB: dict[str, Any] = job_document(_record(), standing_of([_TRIAL_RECORD])).model_dump(mode="json")
QUEUED_JOB: dict[str, Any] = job_document(_queued(), standing_of([])).model_dump(mode="json")
TRIAL: dict[str, Any] = trial_document(_TRIAL_RECORD).model_dump(mode="json")
EVENT: dict[str, Any] = event_document(
    Event(
        12,
        Kind.TRIAL_SCORED,
        {"trial": _TRIAL, "number": 7, "rung": 0, "step": 40, "accuracy": 0.871, "kl": 0.31, "last": False},
        _BEGAN + timedelta(seconds=60),
    )
).model_dump(mode="json")
_MOMENTS = [_BEGAN + timedelta(seconds=60 + second) for second in range(4)]
CURVE: dict[str, Any] = curve(
    _TRIAL_RECORD, [Event(11, "PROGRESS", {"step": 20, "loss": 0.62}, _MOMENTS[0])], _record()
).model_dump(mode="json")
PARETO: dict[str, Any] = pareto(
    _record(), [Seen(_TRIAL, 7, State.COMPLETED, 1, _COST["macs"], 0.902)], "macs", "accuracy", None
).model_dump(mode="json")
SENSITIVITY: dict[str, Any] = sensitivity(  # of one trial a choice: for an interval scipy is loaded
    0, [({"stage1.width": 3}, 0.871), ({"stage1.width": 4}, 0.882)], None
).model_dump(mode="json")
TIMELINE: dict[str, Any] = timeline(
    _record(),
    [
        Event(10, Kind.TRIAL_STARTED, {"trial": _TRIAL, "number": 7, "rung": 0, "attempt": 1}, _MOMENTS[0]),
        Event(12, Kind.TRIAL_SCORED, {"trial": _TRIAL, "last": False, "worker": "node-3:4711"}, _MOMENTS[2]),
        Event(13, Kind.TRIAL_STARTED, {"trial": _TRIAL, "number": 7, "rung": 1, "attempt": 1}, _MOMENTS[3]),
    ],
    after=0,
    limit=2000,
).model_dump(mode="json")
LOG: dict[str, Any] = log_line(
    LoggedLine(41, _MOMENTS[1], Level.WARNING, "stillhouse.session", _TRIAL, "trial 7: the worker died")
).model_dump(mode="json")
PLAN: dict[str, Any] = {
    "teacher": {"name": "small_resnet", "cost": _TEACHER_COST},
    "dataset": {
        "name": "cluttered_digits",
        "classes": 10,
        "shape": [3, 32, 32],
        "images": {"train": 8000, "validation": 2000, "test": 3000},
    },
    "space": {"key": "7c211433f02071597741e6ff", "sites": 9, "kinds": {"width": 7, "removal": 2}, "size": 1.7e7},
    "smallest": {"macs": 801_312, "flops": 1_602_624, "params": 15_210},
    "largest": _TEACHER_COST,
    "limits": {"macs": 4_580_269, "params": 200_000},
    "levels": [
        {
            "limits": {"macs": 4_580_269, "params": 200_000},
            "binding": "macs",
            "witness": {"cost": _COST},
            "share": {"drawn": 100_000, "fitting": 3104, "low": 0.0299, "high": 0.0321},
        }
    ],
    "unmeasured": [],
    "trials": 24,
    "rungs": [40, 120],
    "finalists": 2,
    "estimate": {
        "phases": [
            {"phase": "teacher", "low": 35.0, "expected": 41.0, "high": 62.0},
            {"phase": "survey", "low": 1.5, "expected": 1.5, "high": 1.5},
            {"phase": "search", "low": 44.0, "expected": 58.0, "high": 80.0},
            {"phase": "finalists", "low": 20.0, "expected": 26.0, "high": 40.0},
        ],
        "seconds": {"low": 100.5, "expected": 126.5, "high": 183.5},
        "unit": "cpu-hours",
        "cost": {"low": 0.05, "expected": 0.06, "high": 0.1},
        "basis": "steps of training timed on this machine, cpu, 1 thread",
    },
    "report": [
        {
            "module": "conv1",
            "status": "searchable",
            "site": "layer1.width",
            "reason": "",
            "where": "torchvision.models.resnet:284",
        },
        {
            "module": "layer1.0",
            "status": "removable",
            "site": "layer1.0.keep",
            "reason": "",
            "where": "torchvision.models.resnet:284",
        },
        {
            "module": "fc",
            "status": "frozen",
            "site": None,
            "reason": "its channels are the network's output",
            "where": "torchvision.models.resnet:284",
        },
    ],
}
