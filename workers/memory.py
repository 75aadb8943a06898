"""Both ports filled in memory, for `stillhouse local` and for tests. Nothing outlives the process."""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from search.spec import JobSpec
from search.trial import Score, State, Trial
from workers import rules
from workers.events import Event, Kind
from workers.ids import new_id
from workers.ports import (
    PIECE,
    Artifact,
    Claim,
    JobRecord,
    JobState,
    Level,
    Line,
    LoggedLine,
    Phase,
    PhaseRecord,
    StoredFile,
    Wish,
)
from workers.standings import Standing, standing_of


@dataclass
class _Phase:
    started_at: datetime
    ended_at: datetime | None = None
    result: dict[str, Any] | None = None


@dataclass
class _Job:
    id: str
    spec: dict[str, Any]
    created_at: datetime
    fingerprint: str | None
    state: JobState = JobState.QUEUED
    reason: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    cancel_requested: bool = False
    pause_requested: bool = False
    revision: int = 0
    parent: str | None = None
    deleted: bool = False
    phase: Phase | None = None
    token: int = 0
    claims: int = 0
    fruitless: int = 0
    lease_until: datetime | None = None
    phases: dict[Phase, _Phase] = field(default_factory=dict)
    files: dict[str, StoredFile] = field(default_factory=dict)
    trials: list[Trial] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    log: list[LoggedLine] = field(default_factory=list)
    lines: int = 0
    """Put into the log so far."""


class MemoryLedger:
    """
    A `Ledger`, and the service's side of the record (`service.store.ports.Jobs`), in one object. Threads may share it.

    `clock` gives seconds since 1970; `on_event` hears every event as it is recorded, with its job's id.
    """

    def __init__(
        self, clock: Callable[[], float] = time.time, *, on_event: Callable[[str, Event], None] | None = None
    ) -> None:
        self._clock = clock
        self._on_event = on_event
        self._lock = threading.RLock()
        self._jobs: dict[str, _Job] = {}
        self._keys: dict[str, str] = {}

    # The service's side

    def submit(
        self,
        spec: JobSpec,
        *,
        idempotency_key: str | None = None,
        fingerprint: str | None = None,
        parent: str | None = None,
        action: str = "jobs.create",
    ) -> tuple[JobRecord, bool]:
        """The job and whether it is new; see `service.store.ports.Jobs`."""
        with self._lock:
            if idempotency_key is not None and idempotency_key in self._keys:
                job = self._jobs[self._keys[idempotency_key]]
                if job.fingerprint != fingerprint:
                    raise rules.key_reused(idempotency_key)
                return _record(job), False
            document = rules.plain(spec.model_dump(mode="json"))
            job = _Job(new_id("job"), document, self._now(), fingerprint, parent=parent)
            self._jobs[job.id] = job
            if idempotency_key is not None:
                self._keys[idempotency_key] = job.id
            self._tell(job, Kind.JOB_QUEUED)
            return _record(job), True

    def jobs(
        self, *, limit: int, before: tuple[datetime, str] | None = None, state: JobState | None = None
    ) -> list[JobRecord]:
        with self._lock:
            newest_first = sorted(self._jobs.values(), key=_place, reverse=True)
            return [
                _record(job)
                for job in newest_first
                if (before is None or _place(job) < before) and state in (None, job.state) and not job.deleted
            ][:limit]

    def standings(self, found: Sequence[JobRecord]) -> list[Standing]:
        return [standing_of(self.trials(record.id)) for record in found]

    def events(self, job_id: str, after: int = 0, limit: int = 1000) -> list[Event]:
        with self._lock:
            return copy.deepcopy(self._find(job_id).events[after : after + limit])

    def request_cancel(self, job_id: str) -> JobRecord:
        with self._lock:
            job = self._find(job_id)
            if not job.state.terminal and not job.cancel_requested:
                job.cancel_requested, job.revision = True, job.revision + 1
                self._tell(job, Kind.CANCEL_REQUESTED)
                if job.lease_until is None:
                    self._end(job, JobState.CANCELLED, rules.CANCELLED)
            return _record(job)

    def request_pause(self, job_id: str) -> JobRecord:
        with self._lock:
            job = self._find(job_id)
            rules.may_pause(job.id, job.state, cancel_requested=job.cancel_requested)
            if not job.pause_requested:
                job.pause_requested, job.revision = True, job.revision + 1
                self._tell(job, Kind.PAUSE_REQUESTED)
                if job.lease_until is None:
                    self._tell(job, Kind.JOB_PAUSED)
            return _record(job)

    def resume(self, job_id: str) -> JobRecord:
        with self._lock:
            job = self._find(job_id)
            rules.may_pause(job.id, job.state, cancel_requested=job.cancel_requested)
            if job.pause_requested:
                job.pause_requested, job.revision = False, job.revision + 1
                self._tell(job, Kind.JOB_RESUMED)
            return _record(job)

    def change(self, job_id: str, spec: JobSpec, *, revision: int) -> JobRecord:
        with self._lock:
            job = self._find(job_id)
            if job.revision != revision:
                raise rules.outdated(job.id, revision, job.revision)
            document = rules.plain(spec.model_dump(mode="json"))
            search = job.phases.get(Phase.SEARCH)
            happening = rules.changed_spec(
                job.state,
                job.spec,
                document,
                in_search=search is not None,
                searched=search is not None and search.result is not None,
            )
            if happening is not None:
                job.spec, job.revision = document, job.revision + 1
                self._tell(job, *happening)
            return _record(job)

    def delete(self, job_id: str) -> JobRecord:
        with self._lock:
            job = self._find(job_id)
            rules.may_be_deleted(job.id, job.state)
            job.deleted = True
            self._keys = {key: known for key, known in self._keys.items() if known != job_id}
            return _record(job)

    def logs(
        self, job_id: str, *, after: int = 0, limit: int = 1000, trial: str | None = None, level: Level = Level.DEBUG
    ) -> list[LoggedLine]:
        with self._lock:
            return [
                line
                for line in self._find(job_id).log
                if line.seq > after and line.level in level.and_above and trial in (None, line.trial)
            ][:limit]

    def counts(self) -> dict[JobState, int]:
        with self._lock:
            counts = dict.fromkeys(JobState, 0)
            for job in self._jobs.values():
                counts[job.state] += 1
            return counts

    def ping(self) -> None:
        """The memory is there."""

    def schema_version(self) -> str:
        return "memory"

    # The worker's side

    def claim(self, owner: str, lease_seconds: float) -> Claim | None:
        with self._lock:
            now = self._now()
            for job in sorted(self._jobs.values(), key=lambda job: (-job.spec["priority"], *_place(job))):
                if job.state.terminal or (job.lease_until is not None and job.lease_until > now):
                    continue
                if job.pause_requested and job.lease_until is None:
                    continue
                self._take_over(job)
                job.token += 1
                if job.claims and job.cancel_requested:
                    self._end(job, JobState.CANCELLED, rules.CANCELLED)
                elif job.pause_requested:
                    job.lease_until = None
                    self._tell(job, Kind.JOB_PAUSED)
                elif rules.exhausted(job.spec, job.fruitless):
                    self._end(job, JobState.FAILED, rules.given_up(job.fruitless))
                else:
                    return self._give(job, lease_seconds)
            return None

    def _take_over(self, job: _Job) -> None:
        """What a driver that is gone has left behind."""
        if job.lease_until is not None:
            self._tell(job, Kind.LEASE_EXPIRED)
        for trial in job.trials:
            if trial.state is State.RUNNING:
                self._put(job, rules.returned(trial, rules.DRIVER_DIED))

    def _give(self, job: _Job, lease_seconds: float) -> Claim:
        if job.state is JobState.QUEUED:
            job.state, job.started_at = JobState.PREPARING, self._now()
        job.claims += 1
        job.fruitless += 1
        job.lease_until = self._now() + timedelta(seconds=lease_seconds)
        self._tell(job, Kind.JOB_CLAIMED, claim=job.claims)
        return Claim(job.id, job.token, copy.deepcopy(job.spec))

    def renew(self, claim: Claim, lease_seconds: float) -> Wish:
        with self._lock:
            job = self._owned(claim)
            if job.lease_until is not None:
                job.lease_until = self._now() + timedelta(seconds=lease_seconds)
            return rules.wish(cancel=job.cancel_requested, pause=job.pause_requested)

    def release(self, claim: Claim) -> None:
        with self._lock:
            self._owned(claim).lease_until = None

    def rest(self, claim: Claim) -> None:
        with self._lock:
            job = self._owned(claim)
            if job.lease_until is None:
                return
            for trial in job.trials:
                if trial.state is State.RUNNING:
                    self._put(job, rules.rested(trial))
            job.lease_until, job.fruitless = None, max(job.fruitless - 1, 0)
            if job.cancel_requested:
                self._end(job, JobState.CANCELLED, rules.CANCELLED)
            elif job.pause_requested:
                self._tell(job, Kind.JOB_PAUSED)

    def enter(self, claim: Claim, phase: Phase) -> None:
        with self._lock:
            job = self._held(claim)
            job.state = rules.next_state(job.state, phase)
            job.phase = phase
            job.phases.setdefault(phase, _Phase(self._now()))
            self._tell(job, *rules.entered(phase))

    def finish(self, claim: Claim, phase: Phase, result: Mapping[str, Any], *, revision: int | None = None) -> None:
        with self._lock:
            job = self._held(claim)
            known = job.phases.get(phase)
            if known is None:
                raise rules.never_entered(phase)
            if known.result is not None:
                return
            if revision is not None and revision != job.revision:
                raise rules.outdated(job.id, revision, job.revision)
            known.result = rules.plain(result)
            known.ended_at = self._now()
            job.fruitless = 0
            self._tell(job, *rules.finished(phase, known.result))

    def job(self, job_id: str) -> JobRecord:
        with self._lock:
            return _record(self._find(job_id))

    def note(self, claim: Claim, kind: str, data: Mapping[str, Any]) -> None:
        with self._lock:
            self._tell(self._held(claim), kind, rules.plain(data))

    def log(self, claim: Claim, lines: Sequence[Line]) -> None:
        with self._lock:
            job = self._owned(claim)
            for line in map(rules.cut_line, lines):
                job.lines += 1
                at = self._now() - timedelta(seconds=line.age)
                job.log.append(LoggedLine(job.lines, at, line.level, line.logger, line.trial, line.message))
            del job.log[: -rules.LOG_LINES]

    def close(self, claim: Claim, state: JobState, reason: str = "") -> None:
        with self._lock:
            self._end(self._held(claim), state, reason)

    def keep(self, claim: Claim, name: str, artifact: Artifact, media_type: str) -> None:
        with self._lock:
            job = self._held(claim)
            job.files[name] = StoredFile(name, media_type, artifact)
            self._tell(job, *rules.kept(name, artifact))

    def open_trial(self, claim: Claim, trial: Trial) -> Trial:
        with self._lock:
            job = self._held(claim)
            for known in job.trials:
                if known.key == trial.key:
                    return copy.deepcopy(known)
            changed = rules.opened(trial, new_id("trial"), len(job.trials))
            job.trials.append(changed.trial)
            self._tell(job, *changed.happening)
            return copy.deepcopy(changed.trial)

    def start_trial(self, claim: Claim, trial_id: str) -> Trial:
        with self._lock:
            job = self._held(claim)
            return self._put(job, rules.started(_trial(job, trial_id)))

    def score_trial(self, claim: Claim, trial_id: str, score: Score, *, last: bool, worker: str | None = None) -> Trial:
        with self._lock:
            job = self._held(claim)
            trial = _trial(job, trial_id)
            changed = rules.scored(trial, score, last=last, worker=worker)
            if changed is None:
                return copy.deepcopy(trial)
            job.fruitless = 0
            return self._put(job, changed)

    def return_trial(self, claim: Claim, trial_id: str, reason: str) -> Trial:
        with self._lock:
            job = self._held(claim)
            return self._put(job, rules.returned(_trial(job, trial_id), reason))

    def close_trial(self, claim: Claim, trial_id: str, state: State, reason: str = "") -> Trial:
        with self._lock:
            job = self._held(claim)
            return self._put(job, rules.closed(_trial(job, trial_id), state, reason))

    def trials(self, job_id: str) -> Sequence[Trial]:
        with self._lock:
            return copy.deepcopy(self._find(job_id).trials)

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    def _find(self, job_id: str) -> _Job:
        job = self._jobs.get(job_id)
        if job is None or job.deleted:
            raise rules.no_such_job(job_id)
        return job

    def _owned(self, claim: Claim) -> _Job:
        job = self._find(claim.job_id)
        if job.token != claim.token:
            raise rules.stale(claim)
        return job

    def _held(self, claim: Claim) -> _Job:
        job = self._owned(claim)
        if job.state.terminal:
            raise rules.at_its_end(job.id, job.state)
        return job

    def _tell(self, job: _Job, kind: str, data: Mapping[str, Any] | None = None, **more: Any) -> None:
        told = rules.plain({**(data or {}), **more})
        job.events.append(Event(len(job.events) + 1, str(kind), told, self._now()))
        if self._on_event is not None:
            self._on_event(job.id, job.events[-1])

    def _put(self, job: _Job, changed: rules.Changed) -> Trial:
        job.trials[changed.trial.number] = changed.trial
        self._tell(job, *changed.happening)
        return copy.deepcopy(changed.trial)

    def _end(self, job: _Job, state: JobState, reason: str) -> None:
        happening = rules.closed_job(state, reason)
        for trial in job.trials:
            if not trial.state.terminal:
                self._put(job, rules.closed(trial, State.CANCELLED, f"the job is {state}"))
        job.state, job.reason, job.ended_at, job.lease_until = state, reason, self._now(), None
        self._tell(job, *happening)


def _place(job: _Job) -> tuple[datetime, str]:
    return (job.created_at, job.id)


def _trial(job: _Job, trial_id: str) -> Trial:
    for trial in job.trials:
        if trial.id == trial_id:
            return trial
    raise rules.no_such_trial(job.id, trial_id)


def _record(job: _Job) -> JobRecord:
    return JobRecord(
        id=job.id,
        state=job.state,
        reason=job.reason,
        spec=copy.deepcopy(job.spec),
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        cancel_requested=job.cancel_requested,
        pause_requested=job.pause_requested,
        leased=job.lease_until is not None,
        claims=job.claims,
        revision=job.revision,
        events=len(job.events),
        parent=job.parent,
        phase=job.phase,
        phases={phase: _phase_record(job.phases[phase]) for phase in Phase if phase in job.phases},
        files=[job.files[name] for name in sorted(job.files)],
    )


def _phase_record(phase: _Phase) -> PhaseRecord:
    seconds = None if phase.ended_at is None else max((phase.ended_at - phase.started_at).total_seconds(), 0.0)
    return PhaseRecord(phase.started_at, seconds, copy.deepcopy(phase.result))


class MemoryArtifacts:
    """`Artifacts` in a dictionary."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def put(self, key: str, data: bytes) -> Artifact:
        self._files[rules.check_key(key)] = bytes(data)
        return Artifact(key, len(data), hashlib.sha256(data).hexdigest())

    def get(self, key: str) -> bytes:
        try:
            return self._files[rules.check_key(key)]
        except KeyError:
            raise rules.no_such_artifact(key) from None

    def has(self, key: str) -> bool:
        return rules.check_key(key) in self._files

    def put_pieces(self, key: str, pieces: Iterable[bytes], accept: Callable[[Artifact], None]) -> Artifact:
        rules.check_key(key)
        data = b"".join(pieces)
        accept(Artifact(key, len(data), hashlib.sha256(data).hexdigest()))
        return self.put(key, data)

    def pieces(self, key: str) -> Iterator[bytes]:
        data = self.get(key)
        yield from (data[start : start + PIECE] for start in range(0, len(data), PIECE))

    def delete(self, key: str) -> None:
        self._files.pop(rules.check_key(key), None)
