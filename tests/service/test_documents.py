from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from search.trial import State
from service.documents import Document, JobDocument, job_document, trial_document
from tests.service.served import COST, LIMITS, claimed, searched, submitted, succeeded, taught
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import JobState, Phase
from workers.standings import standing_of


def shown(ledger: MemoryLedger, job_id: str) -> JobDocument:
    return job_document(ledger.job(job_id), standing_of(ledger.trials(job_id)), now=datetime.now(UTC))


def test_a_queued_job_knows_its_spec_and_nothing_else() -> None:
    ledger = MemoryLedger()
    found = shown(ledger, submitted(ledger, labels={"team": "vision"}, priority=3))
    assert (found.state, found.phase, found.labels, found.priority) == (JobState.QUEUED, None, {"team": "vision"}, 3)
    assert found.teacher.model_dump() == {"name": "small_resnet", "source": None, "metrics": None, "cost": None}
    assert found.student is found.best is found.progress is found.started_at is found.timing.seconds is None
    assert found.trials.total == 0
    assert found.spec["search"]["trials"] == 24, "defaults are written out"


def test_a_finished_job_holds_all_that_was_measured() -> None:
    ledger, artifacts = MemoryLedger(), MemoryArtifacts()
    found = shown(ledger, succeeded(ledger, artifacts)).model_dump(mode="json")
    assert found["state"] == "SUCCEEDED"
    assert found["teacher"]["metrics"] == {"accuracy": 0.9, "validation_accuracy": 0.92, "shots": {}, "detection": {}}
    assert found["teacher"]["cost"] == {"macs": 1000, "flops": 2000, "params": 200}
    student = found["student"]
    assert student["metrics"] == {
        "accuracy": 0.87,
        "validation_accuracy": 0.88,
        "kl": 0.13,
        "shots": {},
        "detection": {},
    }
    assert student["cost"] == COST
    assert student["number"] == 1
    assert student["verdicts"] == [
        {"metric": metric, "limit": limit, "value": COST[metric], "fits": True, "at_least": False}
        for metric, limit in LIMITS.items()
    ]
    assert found["trials"] == {
        "total": 2,
        "pending": 0,
        "running": 0,
        "completed": 1,
        "promoted": 1,
        "known": 0,
        "stopped": 0,
        "failed": 0,
        "cancelled": 1,
    }
    assert found["best"]["number"] == 1, "the higher rung, although its accuracy there is lower"
    assert list(found["timing"]["phases"]) == [phase.value for phase in Phase if not phase.optional]
    assert found["artifacts"][0]["href"] == f"/v1/jobs/{found['id']}/artifacts/student/weights.safetensors/content"
    assert json.loads(json.dumps(found)) == found


def test_a_student_over_a_limit_would_be_said_to_be() -> None:
    ledger, artifacts = MemoryLedger(), MemoryArtifacts()
    job_id = succeeded(ledger, artifacts)
    record = ledger.job(job_id)
    record.phases[Phase.EXPORT].result["cost"]["macs"] = LIMITS["macs"] + 1  # type: ignore[index]
    student = job_document(record, standing_of(ledger.trials(job_id))).student
    assert student is not None
    assert [verdict.fits for verdict in student.verdicts] == [False, True]


def test_progress_of_a_search_counts_trials_that_were_scored_or_ended() -> None:
    ledger = MemoryLedger()
    job_id = submitted(ledger)
    claim = claimed(ledger)
    taught(ledger, claim)
    first, _ = searched(ledger, claim)
    ledger.close_trial(claim, first, State.STOPPED, "not promoted")
    found = shown(ledger, job_id)
    assert found.progress is not None
    assert (found.progress.phase, found.progress.done, found.progress.total) == ("search", 2, 24)
    assert (found.trials.stopped, found.trials.completed) == (1, 1)


def test_the_clock_of_a_job_runs_from_its_first_claim_to_its_end() -> None:
    now = [1_000_000.0]
    ledger = MemoryLedger(clock=lambda: now[0])
    job_id = submitted(ledger)
    now[0] += 50
    claim = claimed(ledger)
    began = datetime.fromtimestamp(now[0], UTC)
    later = job_document(ledger.job(job_id), standing_of([]), now=began + timedelta(seconds=7))
    assert later.timing.seconds == 7
    now[0] += 12.5
    ledger.close(claim, JobState.FAILED, "TRIAL_FAILED: NaN")
    ended = job_document(ledger.job(job_id), standing_of([]))
    assert (ended.timing.seconds, ended.reason) == (12.5, "TRIAL_FAILED: NaN")


def test_a_trial_is_told_with_all_its_scores() -> None:
    ledger = MemoryLedger()
    job_id = submitted(ledger)
    searched(ledger, claimed(ledger))
    found = trial_document(ledger.trials(job_id)[1])
    assert (found.number, found.state, found.cost) == (1, State.COMPLETED, COST)
    assert [(score.rung, score.step, score.accuracy) for score in found.scores] == [(0, 40, 0.6), (1, 120, 0.55)]


def documents(kind: type[Document] = Document) -> list[type[Document]]:
    return [found for child in kind.__subclasses__() for found in (child, *documents(child))]


@pytest.mark.parametrize("kind", documents(), ids=lambda kind: kind.__name__)
def test_what_leaves_us_has_no_defaults(kind: type[Document]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.is_required()] == []
