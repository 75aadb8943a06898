"""
What a worker needs of the world: a `Ledger` that remembers and `Artifacts` that keep files.

The storey above fills these ports with a database and a file system; `workers.memory` fills them for `stillhouse local`
and for tests. One contract suite holds over all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Protocol

from search.trial import Score, State, Trial


class JobState(StrEnum):
    """`QUEUED` -> `PREPARING` (teacher to plan) -> `RUNNING` (search) -> `FINALIZING` (finalists, export) -> an end."""

    QUEUED = "QUEUED"
    PREPARING = "PREPARING"
    RUNNING = "RUNNING"
    FINALIZING = "FINALIZING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def terminal(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Wish(StrEnum):
    """What the user wants of a job that a driver has."""

    GO_ON = "go on"
    PAUSE = "pause"
    CANCEL = "cancel"


class Phase(StrEnum):
    """
    The stations of a job, in order. A phase whose result is on record is not done again. `LIBRARY`, `PLAN`, `ELASTIC`
    and `STRUCTURE` are those of jobs that need them.
    """

    TEACHER = "teacher"
    SURVEY = "survey"
    LIBRARY = "library"
    PLAN = "plan"
    ELASTIC = "elastic"
    STRUCTURE = "structure"
    SEARCH = "search"
    FINALISTS = "finalists"
    EXPORT = "export"

    @property
    def optional(self) -> bool:
        """Whether only a job that needs it goes into it."""
        return self in (Phase.LIBRARY, Phase.PLAN, Phase.ELASTIC, Phase.STRUCTURE)

    @property
    def state(self) -> JobState:
        """The job's state while it is in this phase."""
        if self is Phase.SEARCH:
            return JobState.RUNNING
        return JobState.FINALIZING if self in (Phase.FINALISTS, Phase.EXPORT) else JobState.PREPARING


@dataclass(frozen=True, slots=True)
class Claim:
    """A job on lease. `token` rises by one with every claim of the job; a write with an older token is refused."""

    job_id: str
    token: int
    spec: Mapping[str, Any]
    """The job as submitted, for `search.spec.read_spec`."""
    traceparent: str = ""
    """Of the request that submitted it, as W3C Trace Context writes it; empty where nobody traces."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A stored file. `key` is opaque to everyone but the `Artifacts` that gave it."""

    key: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class PhaseRecord:
    """`seconds` runs from the first `enter` to `finish` by the ledger's clock; None while the phase is unfinished."""

    started_at: datetime
    seconds: float | None
    result: Mapping[str, Any] | None
    """What `workers.results` says of this phase; None while it is not finished."""
    read: dict[type, Any] = field(default_factory=dict, init=False, repr=False, compare=False)
    """`result` by what it was read as: whoever shows a job asks for it several times."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """An artifact as a job lists it: `name` is what the user sees, such as `student/weights.safetensors`."""

    name: str
    media_type: str
    artifact: Artifact


@dataclass(frozen=True, slots=True)
class JobRecord:
    """All that is known of a job but its trials. Times are aware, UTC."""

    id: str
    state: JobState
    reason: str
    spec: Mapping[str, Any]
    created_at: datetime
    started_at: datetime | None
    """First claim."""
    ended_at: datetime | None
    cancel_requested: bool
    pause_requested: bool
    """It is not given out until its user lets it go on, and a driver that has it is to give it back."""
    leased: bool
    """A driver has it, or has died without giving it back."""
    claims: int
    """How often it was claimed: 1 for a job whose driver never died."""
    revision: int
    """How often its user has asked for something else of it."""
    events: int
    """The number of its latest event. Nothing about it or its trials changes without one, but who holds its lease."""
    parent: str | None
    """The job that it is a repeat or a variant of."""
    phase: Phase | None
    """The phase entered last; None while it is queued."""
    phases: Mapping[Phase, PhaseRecord]
    files: Sequence[StoredFile]


class Level(StrEnum):
    """How much a line of a log matters, the least first."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"
    CRITICAL = "CRITICAL"

    @classmethod
    def of(cls, number: int) -> Level:
        """By the numbers of the standard library, of which 10 is DEBUG and 50 CRITICAL."""
        return list(cls)[min(max(number // 10, 1), 5) - 1]

    @property
    def and_above(self) -> tuple[Level, ...]:
        levels = tuple(Level)
        return levels[levels.index(self) :]


@dataclass(frozen=True, slots=True)
class Line:
    """Something that was said of a job, or of one of its trials, `age` seconds before it is put on record."""

    level: Level
    logger: str
    message: str
    trial: str | None = None
    age: float = 0.0


@dataclass(frozen=True, slots=True)
class LoggedLine:
    """`seq` counts 1, 2, 3, ... within its job. `at` is UTC by the ledger's clock."""

    seq: int
    at: datetime
    level: Level
    logger: str
    trial: str | None
    message: str


class Ledger(Protocol):
    """
    The record of jobs and trials. All times are the ledger's own.

    Laws, held by the contract suite:
    1. Of any number of claimants exactly one gets a job; a job on a live lease is not given again.
    2. Every write takes a `Claim`; one whose token is not the job's latest raises `StaleClaim` and changes nothing.
    3. Terminal states, of jobs and trials, are absorbing: a further transition raises `IllegalTransition`.
    4. A trial gets at most one score per rung, and a job at most one trial per candidate key: a repeat of either
       changes nothing and returns what is on record.
    5. State, event and result change together or not at all; events of a job are numbered 1, 2, 3, ... without gaps.
    6. What is returned is a value: changing it changes nothing on record.

    Every method may raise `StoreUnavailable`, after which the same call may be made again.
    """

    def claim(self, owner: str, lease_seconds: float) -> Claim | None:
        """
        The queued job of highest priority, oldest first, or one whose lease has run out; None when there is none.

        A job whose lease has run out, or was released, more than `Resources.attempts` times without progress fails with
        reason `INFRASTRUCTURE_EXHAUSTED` instead of being given out; one whose user has asked to cancel it is closed as
        CANCELLED, and one that shall pause stays where it is. Running trials of the former owner become pending.
        """
        ...

    def renew(self, claim: Claim, lease_seconds: float) -> Wish:
        """
        Extends the lease, and says what the user wants. A lease that was given back stays so. Raises `StaleClaim`.
        """
        ...

    def release(self, claim: Claim) -> None:
        """Ends the lease now, so that the job can be claimed again. Raises `StaleClaim`."""
        ...

    def rest(self, claim: Claim) -> None:
        """
        Ends the lease because the user wants a pause. Running trials are pending again as if they had not been started,
        and the claim does not count among those without progress. A job that is to be cancelled by now is CANCELLED;
        again, or at the job's end, this changes nothing. Raises `StaleClaim`.
        """
        ...

    def enter(self, claim: Claim, phase: Phase) -> None:
        """The job goes into `phase` (and the phase's state), with an event. Starts the phase's clock, once."""
        ...

    def finish(self, claim: Claim, phase: Phase, result: Mapping[str, Any], *, revision: int | None = None) -> None:
        """
        Records a phase's result (JSON) and stops its clock, with an event.

        Raises:
            Outdated: `revision` is given, and by now the user has changed the job; look at it again.
        """
        ...

    def job(self, job_id: str) -> JobRecord:
        """Raises `NotFound`."""
        ...

    def note(self, claim: Claim, kind: str, data: Mapping[str, Any]) -> None:
        """An event that changes no state, such as progress in a phase."""
        ...

    def log(self, claim: Claim, lines: Sequence[Line]) -> None:
        """
        Adds to the job's log, of which the newest `workers.rules.LOG_LINES` lines stay. The job may be at its end.

        Raises:
            StaleClaim: another driver owns the job now.
        """
        ...

    def close(self, claim: Claim, state: JobState, reason: str = "") -> None:
        """
        The end of the job; the lease ends too. Trials not yet at their end become CANCELLED.

        Raises:
            IllegalTransition: `state` is not terminal, or the job already is at its end.
        """
        ...

    def keep(self, claim: Claim, name: str, artifact: Artifact, media_type: str) -> None:
        """Lists a stored file under the job's artifacts; the same name again replaces the row."""
        ...

    def open_trial(self, claim: Claim, trial: Trial) -> Trial:
        """
        Records a proposed trial (state PENDING). `trial.id` and `trial.number` are given by the ledger (dense from 0);
        what the caller wrote there is ignored. When the job already has a trial of that key, that one is returned.
        """
        ...

    def start_trial(self, claim: Claim, trial_id: str) -> Trial:
        """PENDING -> RUNNING, attempt + 1."""
        ...

    def score_trial(self, claim: Claim, trial_id: str, score: Score, *, last: bool, worker: str | None = None) -> Trial:
        """
        RUNNING -> PENDING, or -> COMPLETED when `last`; attempt back to 0. `worker` is told in the event: where the
        score was worked out, None where it was known.
        """
        ...

    def return_trial(self, claim: Claim, trial_id: str, reason: str) -> Trial:
        """RUNNING -> PENDING: the machine below it died. The attempt stays counted."""
        ...

    def close_trial(self, claim: Claim, trial_id: str, state: State, reason: str = "") -> Trial:
        """-> STOPPED, FAILED or CANCELLED."""
        ...

    def trials(self, job_id: str) -> Sequence[Trial]:
        """All trials, by number. Raises `NotFound` when there is no such job."""
        ...


PIECE = 2**20
"""Bytes of a file that are in memory at once, where it comes in pieces."""


class Artifacts(Protocol):
    """
    Files by key. Keys are made by us from ids and hashes, with `/` between parts, never from what a user wrote.

    A file is published whole or not at all; publishing the same key again replaces it. Every method may raise
    `StoreUnavailable`.
    """

    def put(self, key: str, data: bytes) -> Artifact: ...

    def get(self, key: str) -> bytes:
        """Raises `NotFound`."""
        ...

    def has(self, key: str) -> bool: ...

    def put_pieces(self, key: str, pieces: Iterable[bytes], accept: Callable[[Artifact], None]) -> Artifact:
        """
        As `put`, of a file that is never whole in memory. `accept` is shown what has come before it is published; what
        it or `pieces` raises goes through, and then nothing is left of the file.
        """
        ...

    def pieces(self, key: str) -> Iterator[bytes]:
        """The file as `get` gives it, a MiB at a time. Raises `NotFound`."""
        ...

    def delete(self, key: str) -> None:
        """Afterwards nothing is there; again changes nothing."""
        ...
