"""Any order of steps, by owners old and new, against a model that fits on a page."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, event

from search.errors import IllegalTransition, Outdated, StaleClaim
from search.spec import read_spec
from search.trial import Score, State, Trial
from service.store.engine import connect
from tests.databases import WholeLedger, emptied
from workers.memory import MemoryLedger
from workers.ports import Claim, JobState, Phase, Wish
from workers.standings import standing_of

ATTEMPTS = 2
ENDS = [JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED]
PLACES = {JobState.QUEUED: 0, JobState.PREPARING: 1, JobState.RUNNING: 2, JobState.FINALIZING: 3}


@dataclass
class ModelTrial:
    id: str
    key: str
    state: State = State.PENDING
    attempt: int = 0
    scores: int = 0


@dataclass
class ModelJob:
    priority: int
    state: JobState = JobState.QUEUED
    phase: Phase | None = None
    lease: Literal["none", "live", "over"] = "none"
    token: int = 0
    claims: int = 0
    fruitless: int = 0
    cancel: bool = False
    pause: bool = False
    trials_wanted: int = 24
    revision: int = 0
    entered: set[Phase] = field(default_factory=set)
    finished: set[Phase] = field(default_factory=set)
    trials: list[ModelTrial] = field(default_factory=list)
    events: int = 1

    def end(self, state: JobState) -> None:
        self.state, self.lease = state, "none"
        self.events += 1 + self.move({State.PENDING, State.RUNNING}, State.CANCELLED)

    def move(self, states: set[State], to: State) -> int:
        moved = [trial for trial in self.trials if trial.state in states]
        for trial in moved:
            trial.state = to
        return len(moved)


class LedgerMachine(RuleBasedStateMachine):
    """`claims` holds all that were ever given, most of them stale."""

    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self, ledger: MemoryLedger | WholeLedger) -> None:
        super().__init__()
        self.ledger = ledger
        self.jobs: dict[str, ModelJob] = {}
        self.keys: dict[str, str] = {}
        self.seen: dict[tuple[str, int], object] = {}

    @initialize()
    def first(self) -> None:
        self.submit(0, None)

    @rule(priority=st.integers(-1, 1), key=st.sampled_from([None, "k1", "k2"]))
    def submit(self, priority: int, key: str | None) -> None:
        document = {"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": {"macs": "50%"}}
        spec = read_spec(document | {"priority": priority, "resources": {"attempts": ATTEMPTS}})
        job, new = self.ledger.submit(spec, idempotency_key=key, fingerprint="f")
        known = self.keys.get(key) if key else None
        assert new == (known is None)
        if new:
            self.jobs[job.id] = ModelJob(priority)
            if key:
                self.keys[key] = job.id
        else:
            assert job.id == known

    @rule(target=claims, live=st.booleans())
    def claim(self, live: bool) -> MultipleResults[Claim] | Claim:
        expected = None
        for job_id, job in sorted(self.jobs.items(), key=lambda item: -item[1].priority):  # stable: oldest first
            if job.state.terminal or job.lease == "live" or (job.pause and job.lease == "none"):
                continue
            job.token += 1
            job.events += (job.lease == "over") + job.move({State.RUNNING}, State.PENDING)
            if job.claims and job.cancel:
                job.end(JobState.CANCELLED)
            elif job.pause:
                job.lease, job.events = "none", job.events + 1
            elif job.fruitless > ATTEMPTS:
                job.end(JobState.FAILED)
            else:
                job.state = max(job.state, JobState.PREPARING, key=PLACES.__getitem__)
                job.claims, job.fruitless, job.events = job.claims + 1, job.fruitless + 1, job.events + 1
                job.lease = "live" if live else "over"
                expected = (job_id, job.token)
                break
        claim = self.ledger.claim("model", 1000 if live else 0)
        assert (None if claim is None else (claim.job_id, claim.token)) == expected
        return multiple() if claim is None else claim

    def write(
        self, claim: Claim, call: Callable[[], object], *, legal: bool = True, absorbing: bool = True
    ) -> ModelJob | None:
        """Carries out `call` and says whose model has to follow, or sees it refused as it must be."""
        job = self.jobs[claim.job_id]
        if claim.token != job.token:
            with pytest.raises(StaleClaim):
                call()
        elif (absorbing and job.state.terminal) or not legal:
            with pytest.raises(IllegalTransition):
                call()
        else:
            call()
            return job
        return None

    @rule(claim=claims, live=st.booleans())
    def renew(self, claim: Claim, live: bool) -> None:
        answers: list[Wish] = []
        seconds = 1000 if live else 0
        job = self.write(claim, lambda: answers.append(self.ledger.renew(claim, seconds)), absorbing=False)
        if job is not None:
            assert answers == [Wish.CANCEL if job.cancel else Wish.PAUSE if job.pause else Wish.GO_ON]
            if job.lease != "none":
                job.lease = "live" if live else "over"

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        job = self.write(claim, lambda: self.ledger.release(claim), absorbing=False)
        if job is not None:
            job.lease = "none"

    @rule(claim=claims)
    def rest(self, claim: Claim) -> None:
        job = self.write(claim, lambda: self.ledger.rest(claim), absorbing=False)
        if job is not None and job.lease != "none":
            for trial in job.trials:
                trial.attempt -= trial.state is State.RUNNING
            job.events += job.move({State.RUNNING}, State.PENDING)
            job.lease, job.fruitless = "none", max(job.fruitless - 1, 0)
            if job.cancel:
                job.end(JobState.CANCELLED)
            else:
                job.events += job.pause

    @rule(claim=claims, phase=st.sampled_from(Phase))
    def enter(self, claim: Claim, phase: Phase) -> None:
        legal = PLACES[phase.state] >= PLACES.get(self.jobs[claim.job_id].state, 0)
        job = self.write(claim, lambda: self.ledger.enter(claim, phase), legal=legal)
        if job is not None:
            job.entered.add(phase)
            job.state, job.phase, job.events = phase.state, phase, job.events + 1

    @rule(claim=claims, phase=st.sampled_from(Phase))
    def finish(self, claim: Claim, phase: Phase) -> None:
        legal = phase in self.jobs[claim.job_id].entered
        job = self.write(claim, lambda: self.ledger.finish(claim, phase, {"of": phase}), legal=legal)
        if job is not None and phase not in job.finished:
            job.finished.add(phase)
            job.fruitless, job.events = 0, job.events + 1

    @rule(claim=claims)
    def note(self, claim: Claim) -> None:
        job = self.write(claim, lambda: self.ledger.note(claim, "PROGRESS", {}))
        if job is not None:
            job.events += 1

    @rule(claim=claims, state=st.sampled_from(JobState))
    def close(self, claim: Claim, state: JobState) -> None:
        job = self.write(claim, lambda: self.ledger.close(claim, state, "why"), legal=state in ENDS)
        if job is not None:
            job.end(state)

    @rule(job=st.data())
    def request_cancel(self, job: st.DataObject) -> None:
        job_id = job.draw(st.sampled_from(sorted(self.jobs)))
        model = self.jobs[job_id]
        if not model.state.terminal and not model.cancel:
            model.cancel, model.events, model.revision = True, model.events + 1, model.revision + 1
            if model.lease == "none":
                model.end(JobState.CANCELLED)
        assert self.ledger.request_cancel(job_id).state is model.state

    @rule(job=st.data(), pause=st.booleans())
    def request_pause_or_resume(self, job: st.DataObject, pause: bool) -> None:
        job_id = job.draw(st.sampled_from(sorted(self.jobs)))
        model = self.jobs[job_id]
        ask = self.ledger.request_pause if pause else self.ledger.resume
        if model.state.terminal or model.cancel:
            with pytest.raises(IllegalTransition):
                ask(job_id)
            return
        if model.pause is not pause:
            model.events += 1 + (pause and model.lease == "none")
            model.pause, model.revision = pause, model.revision + 1
        assert ask(job_id).pause_requested == pause

    @rule(job=st.data(), trials=st.sampled_from([12, 24, 48]), guess=st.integers(0, 3))
    def change(self, job: st.DataObject, trials: int, guess: int) -> None:
        job_id = job.draw(st.sampled_from(sorted(self.jobs)))
        model, before = self.jobs[job_id], read_spec(self.ledger.job(job_id).spec)
        wanted = read_spec(before.model_dump(mode="json") | {"search": {"trials": trials}})
        differs = trials != model.trials_wanted
        too_late = model.state.terminal or Phase.SEARCH in model.finished
        if guess != model.revision:
            with pytest.raises(Outdated):
                self.ledger.change(job_id, wanted, revision=guess)
        elif differs and (too_late or (Phase.SEARCH in model.entered and trials < model.trials_wanted)):
            with pytest.raises(IllegalTransition):
                self.ledger.change(job_id, wanted, revision=guess)
        else:
            self.ledger.change(job_id, wanted, revision=guess)
            model.trials_wanted = trials
            model.revision, model.events = model.revision + differs, model.events + differs

    @rule(claim=claims, key=st.sampled_from("abc"))
    def open_trial(self, claim: Claim, key: str) -> None:
        opened: list[Trial] = []
        proposal = Trial("", 0, key, {"site": 1}, {"site": 2}, {"macs": 3})
        job = self.write(claim, lambda: opened.append(self.ledger.open_trial(claim, proposal)))
        if job is not None and all(trial.key != key for trial in job.trials):
            job.trials.append(ModelTrial(opened[0].id, key))
            job.events += 1

    def of_trial(
        self, claim: Claim, number: int, call: Callable[[str], object], legal: Callable[[ModelTrial], bool]
    ) -> tuple[ModelJob, ModelTrial] | None:
        trials = self.jobs[claim.job_id].trials
        if not trials:
            return None
        trial = trials[number % len(trials)]
        job = self.write(claim, lambda: call(trial.id), legal=legal(trial))
        return None if job is None else (job, trial)

    @rule(claim=claims, number=st.integers(0, 2))
    def start_trial(self, claim: Claim, number: int) -> None:
        done = self.of_trial(
            claim,
            number,
            lambda trial_id: self.ledger.start_trial(claim, trial_id),
            lambda trial: trial.state is State.PENDING,
        )
        if done is not None:
            job, trial = done
            trial.state, trial.attempt, job.events = State.RUNNING, trial.attempt + 1, job.events + 1

    @rule(claim=claims, number=st.integers(0, 2), rung=st.integers(0, 2), last=st.booleans())
    def score_trial(self, claim: Claim, number: int, rung: int, last: bool) -> None:
        score = Score(rung, 10 * (rung + 1), 0.5, 0.1, 1.0)
        done = self.of_trial(
            claim,
            number,
            lambda trial_id: self.ledger.score_trial(claim, trial_id, score, last=last),
            lambda trial: rung < trial.scores or (trial.state is State.RUNNING and rung == trial.scores),
        )
        if done is not None and rung == done[1].scores:
            job, trial = done
            trial.state = State.COMPLETED if last else State.PENDING
            trial.attempt, trial.scores = 0, trial.scores + 1
            job.fruitless, job.events = 0, job.events + 1

    @rule(claim=claims, number=st.integers(0, 2))
    def return_trial(self, claim: Claim, number: int) -> None:
        done = self.of_trial(
            claim,
            number,
            lambda trial_id: self.ledger.return_trial(claim, trial_id, "lost"),
            lambda trial: trial.state is State.RUNNING,
        )
        if done is not None:
            job, trial = done
            trial.state, job.events = State.PENDING, job.events + 1

    @rule(claim=claims, number=st.integers(0, 2), state=st.sampled_from(State))
    def close_trial(self, claim: Claim, number: int, state: State) -> None:
        closing = state in (State.STOPPED, State.FAILED, State.CANCELLED)
        done = self.of_trial(
            claim,
            number,
            lambda trial_id: self.ledger.close_trial(claim, trial_id, state, "why"),
            lambda trial: closing and not trial.state.terminal,
        )
        if done is not None:
            job, trial = done
            trial.state, job.events = state, job.events + 1

    @invariant()
    def the_record_is_as_the_model_says(self) -> None:
        for job_id, model in self.jobs.items():
            job, events = self.ledger.job(job_id), self.ledger.events(job_id)
            assert (job.state, job.phase, job.claims) == (model.state, model.phase, model.claims)
            assert (job.cancel_requested, job.pause_requested) == (model.cancel, model.pause)
            assert (job.revision, job.leased) == (model.revision, model.lease != "none")
            assert job.spec["search"]["trials"] == model.trials_wanted
            assert (job.ended_at is not None) == model.state.terminal
            assert set(job.phases) == model.entered
            assert {phase for phase, record in job.phases.items() if record.result is not None} == model.finished
            assert [event.seq for event in events] == list(range(1, model.events + 1))
            ends = [event.kind for event in events if event.kind in {f"JOB_{end}" for end in ENDS}]
            assert ends == ([f"JOB_{model.state}"] if model.state.terminal else [])
            found = self.ledger.trials(job_id)
            trials = [ModelTrial(one.id, one.key, one.state, one.attempt, len(one.scores)) for one in found]
            assert trials == model.trials
            assert job.events == model.events
            # Whoever has seen a job with so many events need not look again: but for its lease it is what it was.
            now = replace(job, leased=False), found
            assert self.seen.setdefault((job_id, job.events), now) == now
            if model.state.terminal:
                [standing] = self.ledger.standings([job])
                assert replace(standing, trials={}) == replace(standing_of(found), trials={})


def check(machine: Any, **limits: Any) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(deadline=None, suppress_health_check=list(HealthCheck), database=None, **limits),
    )


RUNS = int(os.environ.get("STILLHOUSE_TEST_MODEL_RUNS", "10"))
"""Of each database; 500 before a release."""
STEPS = 50

pytestmark = pytest.mark.timeout(120 + 8 * RUNS)


def test_memory_keeps_to_the_model() -> None:
    check(lambda: LedgerMachine(MemoryLedger()), max_examples=3 * RUNS, stateful_step_count=STEPS)


def test_sqlite_keeps_to_the_model(migrated_file: Path, tmp_path: Path) -> None:
    """On a file that is not synced: the laws do not hang on it, and the disk would take most of the time."""
    engines: list[Engine] = []

    def machine() -> LedgerMachine:
        for former in engines:
            former.dispose()
        engine = connect(f"sqlite:///{shutil.copy(migrated_file, tmp_path / f'{len(engines)}.db')}")
        event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        engines.append(engine)
        return LedgerMachine(WholeLedger(engine))

    check(machine, max_examples=RUNS, stateful_step_count=STEPS)
    engines[-1].dispose()


def test_postgres_keeps_to_the_model(postgres: Engine) -> None:
    check(lambda: LedgerMachine(WholeLedger(emptied(postgres))), max_examples=RUNS, stateful_step_count=STEPS)
