"""The laws of `workers.ports.Ledger` and of `service.store.ports.Jobs`, over every record there is."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine

from search.errors import IllegalTransition, KeyReused, NonFinite, NotFound, StaleClaim
from search.spec import JobSpec, read_spec
from search.trial import Score, State, Trial
from service.store.jobs import SqlJobs
from service.store.ledger import SqlLedger
from service.store.ports import Jobs
from service.store.values import Caller
from tests.databases import WholeLedger
from tests.processes import claim_all, context
from workers.memory import MemoryLedger
from workers.ports import Artifact, Claim, JobRecord, JobState, Ledger, Level, Line, Phase, Wish

if TYPE_CHECKING:
    _memory: tuple[Ledger, Jobs] = (MemoryLedger(), MemoryLedger())
    _sql: Callable[[Engine], Ledger] = SqlLedger
    _jobs: Callable[[Engine, Caller], Jobs] = SqlJobs

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start

Record = MemoryLedger | WholeLedger
Write = Callable[[Record, Claim, Trial], object]

LONG = 1000.0
RUN_OUT = 0.0
"""A lease of this length is over at once, so no test waits for one."""
FILE = Artifact("jobs/1/student.onnx", 12, "0" * 64)

WRITES: dict[str, Write] = {
    "renew": lambda ledger, claim, trial: ledger.renew(claim, LONG),
    "release": lambda ledger, claim, trial: ledger.release(claim),
    "rest": lambda ledger, claim, trial: ledger.rest(claim),
    "enter": lambda ledger, claim, trial: ledger.enter(claim, Phase.FINALISTS),
    "finish": lambda ledger, claim, trial: ledger.finish(claim, Phase.SEARCH, {"finalists": []}),
    "note": lambda ledger, claim, trial: ledger.note(claim, "PROGRESS", {"done": 1}),
    "log": lambda ledger, claim, trial: ledger.log(claim, [Line(Level.INFO, "stillhouse", "begun")]),
    "close": lambda ledger, claim, trial: ledger.close(claim, JobState.SUCCEEDED),
    "keep": lambda ledger, claim, trial: ledger.keep(claim, "student.onnx", FILE, "application/octet-stream"),
    "open_trial": lambda ledger, claim, trial: ledger.open_trial(claim, proposal("another")),
    "start_trial": lambda ledger, claim, trial: ledger.start_trial(claim, trial.id),
    "score_trial": lambda ledger, claim, trial: ledger.score_trial(claim, trial.id, score(trial.rung), last=False),
    "return_trial": lambda ledger, claim, trial: ledger.return_trial(claim, trial.id, "the worker died"),
    "close_trial": lambda ledger, claim, trial: ledger.close_trial(claim, trial.id, State.STOPPED),
}
OF_TRIALS = ["start_trial", "score_trial", "return_trial", "close_trial"]
TRANSITIONS = sorted(WRITES.keys() - {"log", "renew", "release", "rest"})


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest) -> Record:
    if request.param == "memory":
        return MemoryLedger()
    return WholeLedger(request.getfixturevalue(request.param))


def spec(**changes: Any) -> JobSpec:
    return read_spec(
        {"teacher": {"name": "small_resnet"}, "dataset": {"name": "digits"}, "budget": {"macs": "50%"}} | changes
    )


def proposal(key: str) -> Trial:
    return Trial(
        id="ignored",
        number=99,
        key=key,
        choices={"layer2.width": 3, "layer1.width": 1},
        origin={"layer2.width": 4, "layer1.width": 2},
        cost={"macs": 2**40, "params": 7},
        extra={"sampler": {"seen": [1, 2.5, None, "x"]}},
    )


def score(rung: int, accuracy: float = 0.5) -> Score:
    return Score(rung=rung, step=10 * (rung + 1), accuracy=accuracy, kl=0.25, seconds=1.5)


def submitted(ledger: Record, **changes: Any) -> JobRecord:
    job, new = ledger.submit(spec(**changes))
    assert new
    return job


def claimed(ledger: Record, lease_seconds: float = LONG) -> Claim:
    claim = ledger.claim("tester", lease_seconds)
    assert claim is not None
    return claim


def searching(ledger: Record, lease_seconds: float = LONG) -> Claim:
    """A claimed job in its search."""
    submitted(ledger)
    claim = claimed(ledger, lease_seconds)
    ledger.enter(claim, Phase.SEARCH)
    return claim


def running(ledger: Record, claim: Claim, key: str = "a") -> Trial:
    return ledger.start_trial(claim, ledger.open_trial(claim, proposal(key)).id)


def kinds(ledger: Record, job_id: str) -> list[str]:
    return [event.kind for event in ledger.events(job_id)]


def snapshot(ledger: Record, job_id: str) -> tuple[object, ...]:
    """All that is on record of a job, as it is now: whatever shares an object with the record does not follow it."""
    return copy.deepcopy((ledger.job(job_id), ledger.trials(job_id), ledger.events(job_id)))


class TestSubmission:
    def test_a_job_is_queued_with_its_first_event(self, ledger: Record) -> None:
        before = datetime.now(UTC) - timedelta(seconds=1)
        job = submitted(ledger, labels={"team": "vision \u0000"})
        assert ledger.job(job.id) == job
        assert (job.state, job.reason, job.claims, job.phase, job.cancel_requested) == (
            JobState.QUEUED,
            "",
            0,
            None,
            False,
        )
        assert (job.started_at, job.ended_at, dict(job.phases), list(job.files)) == (None, None, {}, [])
        assert before < job.created_at < datetime.now(UTC) + timedelta(seconds=1)
        assert job.created_at.utcoffset() == timedelta(0)
        assert job.id.startswith("job_")
        assert job.id == job.id.lower()
        (event,) = ledger.events(job.id)
        assert (event.seq, event.kind, event.data) == (1, "JOB_QUEUED", {})

    def test_the_spec_comes_back_as_it_was_submitted(self, ledger: Record) -> None:
        wanted = spec(labels={"team": "vision \u0000 ✓"}, priority=-3, search={"seed": 2**32 - 1})
        job, _ = ledger.submit(wanted)
        assert read_spec(job.spec) == wanted
        assert read_spec(claimed(ledger).spec) == wanted

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_what_json_cannot_say_is_refused(self, ledger: Record, value: float) -> None:
        teacher = {"name": "small_resnet", "options": {"width": [value]}}
        poisoned = spec().model_copy(update={"teacher": spec().teacher.model_copy(update=teacher)})
        with pytest.raises(NonFinite):
            ledger.submit(poisoned)
        assert ledger.jobs(limit=10) == []

    def test_a_key_makes_one_job(self, ledger: Record) -> None:
        first, new = ledger.submit(spec(), idempotency_key="k", fingerprint="f")
        again, new_again = ledger.submit(spec(), idempotency_key="k", fingerprint="f")
        assert (new, new_again) == (True, False)
        assert again == first
        assert kinds(ledger, first.id) == ["JOB_QUEUED"]

    def test_a_key_with_another_request_is_refused(self, ledger: Record) -> None:
        ledger.submit(spec(), idempotency_key="k", fingerprint="f")
        with pytest.raises(KeyReused, match="`k` came before"):
            ledger.submit(spec(), idempotency_key="k", fingerprint="g")
        assert len(ledger.jobs(limit=10)) == 1

    def test_without_a_key_equal_requests_are_two_jobs(self, ledger: Record) -> None:
        assert submitted(ledger).id != submitted(ledger).id

    def test_equal_submissions_at_one_moment_make_one_job(self, ledger: Record) -> None:
        barrier = threading.Barrier(8)

        def submit(_: int) -> tuple[str, bool]:
            barrier.wait()
            job, new = ledger.submit(spec(), idempotency_key="k", fingerprint="f")
            return job.id, new

        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(submit, range(8)))
        assert len({job_id for job_id, _ in answers}) == 1
        assert sum(new for _, new in answers) == 1
        assert len(ledger.jobs(limit=10)) == 1


class TestReading:
    def test_jobs_are_listed_newest_first_in_pages_that_do_not_shift(self, ledger: Record) -> None:
        ids = [submitted(ledger).id for _ in range(5)][::-1]
        first = ledger.jobs(limit=2)
        submitted(ledger)
        second = ledger.jobs(limit=2, before=(first[-1].created_at, first[-1].id))
        third = ledger.jobs(limit=2, before=(second[-1].created_at, second[-1].id))
        assert [job.id for page in (first, second, third) for job in page] == ids

    def test_jobs_of_one_state(self, ledger: Record) -> None:
        waiting, ended = submitted(ledger), submitted(ledger)
        ledger.request_cancel(ended.id)
        assert [job.id for job in ledger.jobs(limit=10, state=JobState.QUEUED)] == [waiting.id]
        assert [job.id for job in ledger.jobs(limit=10, state=JobState.CANCELLED)] == [ended.id]
        assert ledger.counts() == dict.fromkeys(JobState, 0) | {JobState.QUEUED: 1, JobState.CANCELLED: 1}

    def test_events_go_on_after_the_last_one_seen(self, ledger: Record) -> None:
        claim = searching(ledger)
        for number in range(4):
            ledger.note(claim, "PROGRESS", {"done": number})
        seen = ledger.events(claim.job_id, limit=4)
        rest = ledger.events(claim.job_id, after=seen[-1].seq)
        assert [event.seq for event in (*seen, *rest)] == [1, 2, 3, 4, 5, 6, 7]
        assert [event.data for event in rest] == [{"done": 1}, {"done": 2}, {"done": 3}]
        assert ledger.events(claim.job_id, after=7) == []

    def test_what_is_not_there_is_not_found(self, ledger: Record) -> None:
        claim = searching(ledger)
        nobody = replace(claim, job_id="job_nobody")
        asked: list[Callable[[], object]] = [
            lambda: ledger.job("job_nobody"),
            lambda: ledger.trials("job_nobody"),
            lambda: ledger.events("job_nobody"),
            lambda: ledger.request_cancel("job_nobody"),
            lambda: ledger.renew(nobody, LONG),
            lambda: ledger.note(nobody, "PROGRESS", {}),
            lambda: ledger.start_trial(claim, "trial_nobody"),
        ]
        for ask in asked:
            with pytest.raises(NotFound, match="nobody"):
                ask()

    def test_a_trial_of_another_job_is_not_found(self, ledger: Record) -> None:
        first = searching(ledger)
        trial = ledger.open_trial(first, proposal("a"))
        with pytest.raises(NotFound):
            ledger.start_trial(searching(ledger), trial.id)

    def test_what_is_returned_is_a_value(self, ledger: Record) -> None:
        claim = searching(ledger)
        ledger.finish(claim, Phase.SEARCH, {"finalists": ["x"]})
        trial, opened = running(ledger, claim), ledger.open_trial(claim, proposal("b"))
        again = ledger.open_trial(claim, proposal("b"))
        before = snapshot(ledger, claim.job_id)

        job, listed, event = ledger.job(claim.job_id), ledger.trials(claim.job_id)[0], ledger.events(claim.job_id)[-1]
        for value in (claim.spec, job.spec, event.data, trial.choices, trial.extra, listed.choices, listed.cost):
            value.clear()  # type: ignore[union-attr]
        for value in (opened.choices, opened.extra, again.origin, again.cost):
            value.clear()  # type: ignore[union-attr]
        job.phases[Phase.SEARCH].result["finalists"].clear()  # type: ignore[index]
        job.phases.clear()  # type: ignore[attr-defined]
        job.files.clear()  # type: ignore[attr-defined]
        assert snapshot(ledger, claim.job_id) == before

    def test_what_is_given_is_copied(self, ledger: Record) -> None:
        claim = searching(ledger)
        given, result, data = proposal("a"), {"finalists": ["x"]}, {"done": [1]}
        ledger.open_trial(claim, given)
        ledger.finish(claim, Phase.SEARCH, result)
        ledger.note(claim, "PROGRESS", data)
        before = snapshot(ledger, claim.job_id)
        for value in (given.choices, given.origin, given.cost, given.extra, result, data):
            value.clear()  # type: ignore[union-attr]
        assert snapshot(ledger, claim.job_id) == before

    def test_the_record_answers(self, ledger: Record) -> None:
        ledger.ping()
        assert ledger.schema_version() is not None


class TestClaims:
    def test_nothing_to_claim(self, ledger: Record) -> None:
        assert ledger.claim("tester", LONG) is None

    def test_higher_priority_first_then_older(self, ledger: Record) -> None:
        low, first, second, high = (submitted(ledger, priority=p).id for p in (-1, 0, 0, 5))
        assert [claimed(ledger).job_id for _ in range(4)] == [high, first, second, low]
        assert ledger.claim("tester", LONG) is None

    def test_a_claim_starts_the_job(self, ledger: Record) -> None:
        job = submitted(ledger)
        claim = claimed(ledger)
        started = ledger.job(job.id)
        assert (claim.job_id, claim.token) == (job.id, 1)
        assert (started.state, started.claims) == (JobState.PREPARING, 1)
        assert started.started_at is not None
        assert started.started_at >= job.created_at
        assert kinds(ledger, job.id) == ["JOB_QUEUED", "JOB_CLAIMED"]

    @pytest.mark.parametrize("end_of_lease", ["run out", "released", "renewed for nothing"])
    def test_a_lease_that_is_over_lets_another_claim(self, ledger: Record, end_of_lease: str) -> None:
        submitted(ledger)
        first = claimed(ledger, RUN_OUT if end_of_lease == "run out" else LONG)
        if end_of_lease == "released":
            ledger.release(first)
        elif end_of_lease == "renewed for nothing":
            ledger.renew(first, RUN_OUT)
        started_at = ledger.job(first.job_id).started_at
        second = claimed(ledger)
        assert (second.job_id, second.token) == (first.job_id, first.token + 1)
        assert ("LEASE_EXPIRED" in kinds(ledger, first.job_id)) == (end_of_lease != "released")
        record = ledger.job(first.job_id)
        assert (record.claims, record.started_at) == (2, started_at)
        assert ledger.claim("tester", LONG) is None

    def test_renewing_keeps_a_lease(self, ledger: Record) -> None:
        submitted(ledger)
        claim = claimed(ledger, RUN_OUT)
        assert ledger.renew(claim, LONG) is Wish.GO_ON
        assert ledger.claim("tester", LONG) is None

    def test_a_lease_lasts_as_long_as_it_says(self, ledger: Record) -> None:
        submitted(ledger)
        began = time.monotonic()
        claimed(ledger, 0.3)
        while ledger.claim("tester", LONG) is None:
            time.sleep(0.01)
        assert 0.29 < time.monotonic() - began < 3

    def test_running_trials_of_the_former_owner_become_pending(self, ledger: Record) -> None:
        claim = searching(ledger, RUN_OUT)
        trial, waiting = running(ledger, claim, "a"), ledger.open_trial(claim, proposal("b"))
        second = claimed(ledger)
        assert ledger.trials(claim.job_id) == [replace(trial, state=State.PENDING), waiting]
        assert kinds(ledger, claim.job_id)[-3:] == ["LEASE_EXPIRED", "TRIAL_RETURNED", "JOB_CLAIMED"]
        assert ledger.start_trial(second, trial.id).attempt == 2

    def test_a_taken_over_job_stays_where_it_was(self, ledger: Record) -> None:
        claim = searching(ledger, RUN_OUT)
        claimed(ledger)
        record = ledger.job(claim.job_id)
        assert (record.state, record.phase) == (JobState.RUNNING, Phase.SEARCH)

    @pytest.mark.parametrize("name", WRITES)
    def test_an_old_token_is_refused_everywhere_and_changes_nothing(self, ledger: Record, name: str) -> None:
        old = searching(ledger, RUN_OUT)
        trial = running(ledger, old)
        new = claimed(ledger)
        if name != "start_trial":
            trial = ledger.start_trial(new, trial.id)
        before = snapshot(ledger, old.job_id)
        with pytest.raises(StaleClaim):
            WRITES[name](ledger, old, trial)
        assert snapshot(ledger, old.job_id) == before
        assert ledger.claim("tester", LONG) is None  # and the new owner's lease is whole
        WRITES[name](ledger, new, trial)

    @pytest.mark.parametrize("give_back", ["run out", "released"])
    def test_a_job_that_only_kills_its_drivers_is_given_up(self, ledger: Record, give_back: str) -> None:
        poison, harmless = submitted(ledger, resources={"attempts": 2}, priority=1), submitted(ledger)
        for _ in range(3):
            claim = claimed(ledger, RUN_OUT if give_back == "run out" else LONG)
            assert claim.job_id == poison.id
            if give_back == "released":
                ledger.release(claim)
        assert claimed(ledger).job_id == harmless.id
        record = ledger.job(poison.id)
        assert record.state is JobState.FAILED
        assert record.reason == "INFRASTRUCTURE_EXHAUSTED: 3 drivers in a row ended without progress"
        assert ledger.events(poison.id)[-1].data == {"reason": record.reason}
        with pytest.raises(StaleClaim):
            ledger.note(claim, "PROGRESS", {})

    @pytest.mark.parametrize("progress", ["score", "phase"])
    def test_progress_earns_new_attempts(self, ledger: Record, progress: str) -> None:
        submitted(ledger, resources={"attempts": 1})
        for turn in range(4):
            claim = claimed(ledger, RUN_OUT)
            if progress == "score":
                ledger.score_trial(claim, running(ledger, claim, f"trial {turn}").id, score(0), last=True)
            else:
                phase = list(Phase)[turn]
                ledger.enter(claim, phase)
                ledger.finish(claim, phase, {})
            claim = claimed(ledger, RUN_OUT)
        assert not ledger.job(claim.job_id).state.terminal

    def test_a_repeated_score_is_no_progress(self, ledger: Record) -> None:
        submitted(ledger, resources={"attempts": 1})
        claim = claimed(ledger, RUN_OUT)
        trial = running(ledger, claim)
        ledger.score_trial(claim, trial.id, score(0), last=False)
        for _ in range(2):
            claim = claimed(ledger, RUN_OUT)
            ledger.score_trial(claim, trial.id, score(0), last=False)
        assert ledger.claim("tester", LONG) is None
        assert ledger.job(claim.job_id).state is JobState.FAILED


class TestPhases:
    def test_a_phase_is_entered_and_finished(self, ledger: Record) -> None:
        submitted(ledger)
        claim = claimed(ledger)
        states = []
        for phase in Phase:
            ledger.enter(claim, phase)
            record = ledger.job(claim.job_id)
            assert record.phase is phase
            assert record.phases[phase].seconds is None
            assert record.phases[phase].result is None
            states.append(record.state)
            ledger.finish(claim, phase, {"of": phase, "numbers": [1, 0.5]})
        assert states == [*[JobState.PREPARING] * 6, JobState.RUNNING, *[JobState.FINALIZING] * 2]
        phases = ledger.job(claim.job_id).phases
        assert list(phases) == list(Phase)
        for phase, done in phases.items():
            assert done.result == {"of": phase.value, "numbers": [1, 0.5]}
            assert done.seconds is not None
            assert 0 <= done.seconds < 3
        told = [(event.kind, event.data["phase"]) for event in ledger.events(claim.job_id)[2:]]
        assert told == [(kind, phase) for phase in Phase for kind in ("PHASE_ENTERED", "PHASE_FINISHED")]

    def test_the_clock_of_a_phase_starts_once(self, ledger: Record) -> None:
        claim = searching(ledger, RUN_OUT)
        began = ledger.job(claim.job_id).phases[Phase.SEARCH].started_at
        time.sleep(0.05)
        claim = claimed(ledger)
        ledger.enter(claim, Phase.SEARCH)
        ledger.finish(claim, Phase.SEARCH, {})
        done = ledger.job(claim.job_id).phases[Phase.SEARCH]
        assert done.started_at == began
        assert done.seconds is not None
        assert done.seconds >= 0.045

    def test_the_first_result_of_a_phase_stays(self, ledger: Record) -> None:
        claim = searching(ledger)
        ledger.finish(claim, Phase.SEARCH, {"finalists": ["a"]})
        before = snapshot(ledger, claim.job_id)
        ledger.finish(claim, Phase.SEARCH, {"finalists": ["b"]})
        assert snapshot(ledger, claim.job_id) == before

    def test_no_way_back(self, ledger: Record) -> None:
        claim = searching(ledger)
        before = snapshot(ledger, claim.job_id)
        with pytest.raises(IllegalTransition, match="cannot go back to the phase teacher"):
            ledger.enter(claim, Phase.TEACHER)
        with pytest.raises(IllegalTransition, match="never entered"):
            ledger.finish(claim, Phase.EXPORT, {})
        assert snapshot(ledger, claim.job_id) == before

    def test_files_are_listed_by_name_and_replaced(self, ledger: Record) -> None:
        claim = searching(ledger)
        larger = replace(FILE, bytes=2**40, sha256="f" * 64)
        ledger.keep(claim, "student/b.onnx", FILE, "application/octet-stream")
        ledger.keep(claim, "student/a.json", FILE, "application/json")
        ledger.keep(claim, "student/b.onnx", larger, "text/plain")
        files = ledger.job(claim.job_id).files
        assert [(file.name, file.media_type, file.artifact) for file in files] == [
            ("student/a.json", "application/json", FILE),
            ("student/b.onnx", "text/plain", larger),
        ]
        last = ledger.events(claim.job_id)[-1]
        assert (last.kind, last.data) == (
            "ARTIFACT_KEPT",
            {"name": "student/b.onnx", "bytes": 2**40, "sha256": "f" * 64},
        )


class TestTrials:
    def test_a_trial_from_proposal_to_its_last_score(self, ledger: Record) -> None:
        claim = searching(ledger)
        opened = ledger.open_trial(claim, proposal("a"))
        wanted = replace(proposal("a"), id=opened.id, number=0)
        assert opened == wanted
        assert opened.id.startswith("trial_")
        assert list(opened.choices) == ["layer2.width", "layer1.width"]
        started = ledger.start_trial(claim, opened.id)
        assert started == replace(wanted, state=State.RUNNING, attempt=1)
        first = ledger.score_trial(claim, opened.id, score(0), last=False)
        assert first == replace(wanted, scores=(score(0),))
        ledger.start_trial(claim, opened.id)
        known = replace(score(1, 0.1 + 0.2), seconds=0.0, cached=True)
        done = ledger.score_trial(claim, opened.id, known, last=True)
        assert done == replace(wanted, state=State.COMPLETED, scores=(score(0), known))
        assert ledger.trials(claim.job_id) == [done]
        told = [(event.kind, event.data) for event in ledger.events(claim.job_id)[3:]]
        named = {"trial": opened.id, "number": 0}
        values = {"kl": 0.25, "worker": None}
        assert told == [
            ("TRIAL_PROPOSED", named | {"choices": dict(wanted.choices), "cost": dict(wanted.cost)}),
            ("TRIAL_STARTED", named | {"rung": 0, "attempt": 1}),
            ("TRIAL_SCORED", named | values | {"rung": 0, "step": 10, "accuracy": 0.5, "cached": False, "last": False}),
            ("TRIAL_STARTED", named | {"rung": 1, "attempt": 1}),
            (
                "TRIAL_SCORED",
                named | values | {"rung": 1, "step": 20, "accuracy": 0.1 + 0.2, "cached": True, "last": True},
            ),
        ]

    def test_numbers_are_dense_from_zero_in_each_job(self, ledger: Record) -> None:
        first, second = searching(ledger), searching(ledger)
        for key in "abc":
            ledger.open_trial(first, proposal(key))
            ledger.open_trial(second, proposal(key))
        for claim in (first, second):
            assert [(t.number, t.key) for t in ledger.trials(claim.job_id)] == [(0, "a"), (1, "b"), (2, "c")]

    def test_a_candidate_has_one_trial(self, ledger: Record) -> None:
        claim = searching(ledger)
        trial = running(ledger, claim)
        before = snapshot(ledger, claim.job_id)
        assert ledger.open_trial(claim, replace(proposal("a"), choices={"other": 1})) == trial
        assert snapshot(ledger, claim.job_id) == before

    @pytest.mark.parametrize("last", [False, True])
    def test_a_rung_has_one_score(self, ledger: Record, last: bool) -> None:
        claim = searching(ledger)
        trial = running(ledger, claim)
        scored = ledger.score_trial(claim, trial.id, score(0), last=last)
        before = snapshot(ledger, claim.job_id)
        assert ledger.score_trial(claim, trial.id, score(0, accuracy=0.9), last=last) == scored
        assert snapshot(ledger, claim.job_id) == before

    def test_a_late_score_of_a_lower_rung_does_not_end_the_higher_one(self, ledger: Record) -> None:
        claim = searching(ledger)
        trial = running(ledger, claim)
        ledger.score_trial(claim, trial.id, score(0), last=False)
        started = ledger.start_trial(claim, trial.id)
        assert ledger.score_trial(claim, trial.id, score(0), last=False) == started

    def test_attempts_are_counted_until_a_score(self, ledger: Record) -> None:
        claim = searching(ledger)
        trial = running(ledger, claim)
        returned = ledger.return_trial(claim, trial.id, "the worker died")
        assert (returned.state, returned.attempt) == (State.PENDING, 1)
        assert ledger.events(claim.job_id)[-1].data["reason"] == "the worker died"
        assert ledger.start_trial(claim, trial.id).attempt == 2
        assert ledger.score_trial(claim, trial.id, score(0), last=False).attempt == 0

    @pytest.mark.parametrize("state", [State.STOPPED, State.FAILED, State.CANCELLED])
    @pytest.mark.parametrize("was", [State.PENDING, State.RUNNING])
    def test_a_trial_is_closed_with_a_reason(self, ledger: Record, state: State, was: State) -> None:
        claim = searching(ledger)
        trial = running(ledger, claim) if was is State.RUNNING else ledger.open_trial(claim, proposal("a"))
        closed = ledger.close_trial(claim, trial.id, state, "the loss became nan \ud800 at \u0000")
        assert closed.state is state
        (listed,) = ledger.trials(claim.job_id)
        assert (listed.state, listed.reason[:19]) == (state, "the loss became nan")
        event = ledger.events(claim.job_id)[-1]
        assert event.kind == f"TRIAL_{state}"
        assert event.data["reason"][:19] == "the loss became nan"

    @pytest.mark.parametrize("write", OF_TRIALS)
    @pytest.mark.parametrize("end", [State.COMPLETED, State.STOPPED, State.FAILED, State.CANCELLED])
    def test_an_end_of_a_trial_is_an_end(self, ledger: Record, end: State, write: str) -> None:
        claim = searching(ledger)
        trial = running(ledger, claim)
        if end is State.COMPLETED:
            trial = ledger.score_trial(claim, trial.id, score(0), last=True)
        else:
            trial = ledger.close_trial(claim, trial.id, end)
        before = snapshot(ledger, claim.job_id)
        with pytest.raises(IllegalTransition, match=f"trial 0 is {end}"):
            WRITES[write](ledger, claim, trial)
        assert snapshot(ledger, claim.job_id) == before

    def test_steps_out_of_order_are_refused(self, ledger: Record) -> None:
        claim = searching(ledger)
        trial = running(ledger, claim)
        before = snapshot(ledger, claim.job_id)
        refused: list[Callable[[], object]] = [
            lambda: ledger.start_trial(claim, trial.id),
            lambda: ledger.score_trial(claim, trial.id, score(1), last=False),
            lambda: ledger.close_trial(claim, trial.id, State.COMPLETED),
            lambda: ledger.close_trial(claim, trial.id, State.PENDING),
        ]
        for write in refused:
            with pytest.raises(IllegalTransition):
                write()
        assert snapshot(ledger, claim.job_id) == before

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("part", ["accuracy", "kl", "seconds"])
    def test_only_finite_scores_are_recorded(self, ledger: Record, part: str, value: float) -> None:
        claim = searching(ledger)
        trial = running(ledger, claim)
        before = snapshot(ledger, claim.job_id)
        with pytest.raises(NonFinite):
            ledger.score_trial(claim, trial.id, replace(score(0), **{part: value}), last=False)  # type: ignore[arg-type]
        assert snapshot(ledger, claim.job_id) == before

    def test_only_finite_documents_are_recorded(self, ledger: Record) -> None:
        claim = searching(ledger)
        before = snapshot(ledger, claim.job_id)
        bad = {"deep": [{"kl": math.nan}]}
        refused: list[Callable[[], object]] = [
            lambda: ledger.note(claim, "PROGRESS", bad),
            lambda: ledger.finish(claim, Phase.SEARCH, bad),
            lambda: ledger.open_trial(claim, replace(proposal("a"), extra=bad)),
        ]
        for write in refused:
            with pytest.raises(NonFinite):
                write()
        assert snapshot(ledger, claim.job_id) == before


class TestEnds:
    @pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
    def test_closing_ends_the_job_and_what_is_open_of_its_trials(self, ledger: Record, state: JobState) -> None:
        claim = searching(ledger)
        done = ledger.score_trial(claim, running(ledger, claim, "a").id, score(0), last=True)
        running(ledger, claim, "b")
        ledger.open_trial(claim, proposal("c"))
        ledger.close(claim, state, "why")
        record = ledger.job(claim.job_id)
        assert (record.state, record.reason) == (state, "why")
        assert record.ended_at is not None
        assert [trial.state for trial in ledger.trials(claim.job_id)] == [done.state, *[State.CANCELLED] * 2]
        assert kinds(ledger, claim.job_id)[-3:] == ["TRIAL_CANCELLED", "TRIAL_CANCELLED", f"JOB_{state}"]
        assert ledger.claim("tester", LONG) is None

    @pytest.mark.parametrize("state", [state for state in JobState if not state.terminal])
    def test_only_an_end_closes(self, ledger: Record, state: JobState) -> None:
        claim = searching(ledger)
        before = snapshot(ledger, claim.job_id)
        with pytest.raises(IllegalTransition):
            ledger.close(claim, state)
        assert snapshot(ledger, claim.job_id) == before

    @pytest.mark.parametrize("write", TRANSITIONS)
    def test_an_end_of_a_job_is_an_end(self, ledger: Record, write: str) -> None:
        claim = searching(ledger)
        trial = running(ledger, claim)
        ledger.close(claim, JobState.FAILED, "first")
        before = snapshot(ledger, claim.job_id)
        with pytest.raises(IllegalTransition, match="FAILED; that is an end"):
            WRITES[write](ledger, claim, trial)
        assert snapshot(ledger, claim.job_id) == before

    def test_the_lease_of_an_ended_job_is_no_matter(self, ledger: Record) -> None:
        """The heartbeat may beat once more while its driver leaves."""
        claim = searching(ledger)
        ledger.close(claim, JobState.SUCCEEDED)
        before = snapshot(ledger, claim.job_id)
        assert ledger.renew(claim, LONG) is Wish.GO_ON
        ledger.release(claim)
        assert snapshot(ledger, claim.job_id) == before
        assert ledger.claim("tester", LONG) is None


class TestCancellation:
    def test_a_queued_job_is_cancelled_at_once(self, ledger: Record) -> None:
        job = submitted(ledger)
        cancelled = ledger.request_cancel(job.id)
        assert (cancelled.state, cancelled.cancel_requested) == (JobState.CANCELLED, True)
        assert cancelled.ended_at is not None
        assert cancelled == ledger.job(job.id)
        assert kinds(ledger, job.id) == ["JOB_QUEUED", "CANCEL_REQUESTED", "JOB_CANCELLED"]
        assert ledger.claim("tester", LONG) is None

    def test_a_claimed_job_is_marked_and_its_driver_told(self, ledger: Record) -> None:
        claim = searching(ledger)
        marked = ledger.request_cancel(claim.job_id)
        assert (marked.state, marked.cancel_requested) == (JobState.RUNNING, True)
        assert ledger.renew(claim, LONG) is Wish.CANCEL
        assert kinds(ledger, claim.job_id)[-1] == "CANCEL_REQUESTED"
        before = snapshot(ledger, claim.job_id)
        assert ledger.request_cancel(claim.job_id) == marked
        assert snapshot(ledger, claim.job_id) == before
        ledger.close(claim, JobState.CANCELLED, "cancelled by the user")

    def test_a_job_at_its_end_stays_as_it_is(self, ledger: Record) -> None:
        claim = searching(ledger)
        ledger.close(claim, JobState.SUCCEEDED)
        before = snapshot(ledger, claim.job_id)
        assert ledger.request_cancel(claim.job_id).state is JobState.SUCCEEDED
        assert snapshot(ledger, claim.job_id) == before

    def test_a_job_whose_driver_died_before_it_heard_is_not_given_out_again(self, ledger: Record) -> None:
        claim = searching(ledger, RUN_OUT)
        trial = running(ledger, claim)
        ledger.request_cancel(claim.job_id)
        assert ledger.claim("tester", LONG) is None
        record = ledger.job(claim.job_id)
        assert (record.state, record.reason) == (JobState.CANCELLED, "cancelled by the user")
        with pytest.raises(StaleClaim):
            ledger.score_trial(claim, trial.id, score(0), last=True)

    def test_cancelling_and_finishing_race_to_one_end(self, ledger: Record) -> None:
        for turn in range(20):
            claim = searching(ledger)
            barrier = threading.Barrier(2)

            def cancel(job_id: str = claim.job_id, barrier: threading.Barrier = barrier) -> JobRecord:
                barrier.wait()
                return ledger.request_cancel(job_id)

            with ThreadPoolExecutor(1) as pool:
                answer = pool.submit(cancel)
                barrier.wait()
                ledger.close(claim, JobState.SUCCEEDED, f"turn {turn}")
                assert answer.result().state in (JobState.RUNNING, JobState.SUCCEEDED)
            assert ledger.job(claim.job_id).state is JobState.SUCCEEDED
            ends = [kind for kind in kinds(ledger, claim.job_id) if kind in ("JOB_SUCCEEDED", "JOB_CANCELLED")]
            assert ends == ["JOB_SUCCEEDED"]


class TestConcurrency:
    def test_events_are_numbered_without_gaps_whoever_writes(self, ledger: Record) -> None:
        claim = searching(ledger)

        def write(writer: int) -> None:
            for turn in range(10):
                if turn == 5 and writer == 0:
                    ledger.request_cancel(claim.job_id)
                ledger.note(claim, "PROGRESS", {"writer": writer, "turn": turn})

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(4)))
        events = ledger.events(claim.job_id)
        assert [event.seq for event in events] == list(range(1, 3 + 41 + 1))
        assert [event.at for event in events] == sorted(event.at for event in events)
        for writer in range(4):
            turns = [event.data["turn"] for event in events if event.data.get("writer") == writer]
            assert turns == list(range(10))

    def test_one_of_many_threads_gets_a_job(self, ledger: Record) -> None:
        wanted = [submitted(ledger).id for _ in range(30)]
        given: list[str] = []

        def work(_: int) -> None:
            while len(given) < len(wanted):
                claim = ledger.claim("tester", LONG)
                if claim is not None:
                    given.append(claim.job_id)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert Counter(given) == Counter(wanted)

    def test_equal_candidates_at_one_moment_make_one_trial(self, ledger: Record) -> None:
        claim = searching(ledger)
        with ThreadPoolExecutor(4) as pool:
            trials = list(pool.map(lambda n: ledger.open_trial(claim, proposal(f"key {n % 5}")), range(20)))
        assert len({trial.id for trial in trials}) == 5
        assert sorted(trial.number for trial in ledger.trials(claim.job_id)) == [0, 1, 2, 3, 4]

    @pytest.mark.timeout(60)
    def test_four_processes_claim_two_hundred_jobs_once_each(self, engine: Engine) -> None:
        ledger = WholeLedger(engine)
        wanted = {submitted(ledger).id for _ in range(200)}
        url = engine.url.render_as_string(hide_password=False)
        pipes = [context.Pipe(duplex=False) for _ in range(4)]
        claimants = [context.Process(target=claim_all, args=(url, writer)) for _, writer in pipes]
        for claimant in claimants:
            claimant.start()
        claims = [reader.recv() for reader, _ in pipes]
        for claimant in claimants:
            claimant.join()
        assert [claimant.exitcode for claimant in claimants] == [0] * 4
        given = [job_id for claim in claims for job_id in claim]
        assert len(given) == 200
        assert set(given) == wanted
        assert sum(bool(claim) for claim in claims) > 1, "the processes did not work side by side"
        for job_id in given[::20]:
            assert kinds(ledger, job_id) == ["JOB_QUEUED", "JOB_CLAIMED"]
            assert ledger.job(job_id).claims == 1


class TestLog:
    def test_lines_are_numbered_in_their_order_and_know_when_they_were_said(self, ledger: Record) -> None:
        claim = searching(ledger)
        lines = [
            Line(Level.DEBUG, "stillhouse.a", "half a \ud800 pair and a \0", age=60.0),
            Line(Level.WARNING, "stillhouse.b", "second", trial="trial_x"),
        ]
        ledger.log(claim, lines)
        ledger.log(claim, [])
        ledger.log(claim, [Line(Level.ERROR, "stillhouse.a", "third", trial="trial_y")])
        first, second, third = ledger.logs(claim.job_id)
        assert [line.seq for line in (first, second, third)] == [1, 2, 3]
        assert (second.level, second.logger, second.trial, second.message) == (
            Level.WARNING,
            "stillhouse.b",
            "trial_x",
            "second",
        )
        assert timedelta(seconds=59) < second.at - first.at < timedelta(seconds=61)
        assert [line.seq for line in ledger.logs(claim.job_id, after=1, limit=1)] == [2]
        assert [line.seq for line in ledger.logs(claim.job_id, level=Level.WARNING)] == [2, 3]
        assert [line.seq for line in ledger.logs(claim.job_id, trial="trial_y")] == [3]
        with pytest.raises(NotFound):
            ledger.logs("job_nope")

    def test_it_is_no_event_and_goes_on_after_the_end(self, ledger: Record) -> None:
        claim = searching(ledger)
        before = kinds(ledger, claim.job_id)
        ledger.log(claim, [Line(Level.INFO, "stillhouse", "begun")])
        assert kinds(ledger, claim.job_id) == before
        ledger.close(claim, JobState.FAILED, "why")
        ledger.log(claim, [Line(Level.INFO, "stillhouse", "over")])
        assert [line.message for line in ledger.logs(claim.job_id)] == ["begun", "over"]

    def test_the_newest_lines_stay_and_none_is_of_any_length(
        self, ledger: Record, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("workers.rules.LOG_LINES", 5)
        claim = searching(ledger)
        for batch in range(3):
            ledger.log(claim, [Line(Level.INFO, "stillhouse", f"{batch} {line}") for line in range(4)])
        assert [line.seq for line in ledger.logs(claim.job_id)] == [8, 9, 10, 11, 12]
        ledger.log(claim, [Line(Level.INFO, "x" * 1000, "y" * 10**6)])
        [last] = ledger.logs(claim.job_id, after=12)
        assert (len(last.logger), last.message[4000:]) == (128, "... (1,000,000 characters)")


def test_an_event_tells_where_a_score_was_worked_out(ledger: Record) -> None:
    claim = searching(ledger)
    trial = running(ledger, claim)
    ledger.score_trial(claim, trial.id, score(0), last=True, worker="a-host:17")
    assert ledger.events(claim.job_id)[-1].data["worker"] == "a-host:17"
