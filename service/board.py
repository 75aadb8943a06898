"""What can be said of a job from its events alone: a fold, so that a live view, a replay and `local` show the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from search.budget import Budget
from search.trial import State
from workers.events import Kind
from workers.ports import JobState, Phase


class Happened(Protocol):
    """An event, whether it comes from a ledger or over the wire."""

    @property
    def kind(self) -> str: ...

    @property
    def at(self) -> datetime: ...

    @property
    def data(self) -> Mapping[str, Any]: ...


@dataclass
class Station:
    """A phase as far as it has come; `done` of `total` in units of its own."""

    started_at: datetime | None = None
    ended_at: datetime | None = None
    done: int = 0
    total: int = 0
    result: Mapping[str, Any] | None = None
    """What it came to, as `workers.results` says it."""

    def seconds(self, now: datetime) -> float | None:
        if self.started_at is None:
            return None
        return max(((self.ended_at or now) - self.started_at).total_seconds(), 0.0)


@dataclass
class Contender:
    """A trial as the board knows it. `rungs` counts its scores; `accuracy` is the last one's, on validation."""

    number: int
    state: State
    cost: Mapping[str, int]
    rungs: int = 0
    accuracy: float | None = None
    kl: float = 0.0


@dataclass
class Board:
    """`spec` is the job's, as its document gives it."""

    job_id: str
    spec: Mapping[str, Any]
    state: JobState = JobState.QUEUED
    reason: str = ""
    phase: Phase | None = None
    began_at: datetime | None = None
    ended_at: datetime | None = None
    stations: dict[Phase, Station] = field(default_factory=lambda: {phase: Station() for phase in Phase})
    contenders: dict[int, Contender] = field(default_factory=dict)
    course: list[float] = field(default_factory=list)
    """The best accuracy after each score."""
    teacher_cost: Mapping[str, int] = field(default_factory=dict)
    teacher_accuracy: float | None = None
    limits: Mapping[str, int] = field(default_factory=dict)
    levels: Sequence[Budget] = ()
    """Loosest first; empty until the survey is done."""

    @property
    def best(self) -> Contender | None:
        ranking = self.ranking
        return ranking[0] if ranking else None

    @property
    def ranking(self) -> list[Contender]:
        """Scored trials, best first: the higher rung, then the accuracy, then the nearness to the teacher."""
        scored = [found for found in self.contenders.values() if found.accuracy is not None]
        return sorted(scored, key=lambda found: (-found.rungs, -(found.accuracy or 0), found.kl, found.number))

    def best_of(self, level: int) -> Contender | None:
        """The best of all trials that fit a level."""
        return next((found for found in self.ranking if self.levels[level].holds(found.cost)), None)

    def points(self, metric: str) -> list[tuple[float, float]]:
        """Cost and accuracy of the scored trials."""
        return [(found.cost[metric], found.accuracy) for found in self.ranking if found.accuracy is not None]

    def counts(self) -> dict[State, int]:
        counts = dict.fromkeys(State, 0)
        for contender in self.contenders.values():
            counts[contender.state] += 1
        return counts

    def take(self, event: Happened) -> None:
        """Events come in their order. Kinds that are not known change nothing."""
        data = event.data
        self.began_at = self.began_at or event.at
        match event.kind:
            case Kind.PHASE_ENTERED:
                self._enter(Phase(data["phase"]), event.at)
            case Kind.PHASE_FINISHED:
                self._finish(Phase(data["phase"]), data["result"], event.at)
            case "PROGRESS" if "done" in data:
                station = self.stations[Phase(data["phase"])]
                station.done, station.total = data["done"], data["total"]
            case Kind.TRIAL_PROPOSED:
                self.contenders[data["number"]] = Contender(data["number"], State.PENDING, data["cost"])
            case Kind.TRIAL_SCORED:
                self._score(data)
            case (
                Kind.TRIAL_STARTED | Kind.TRIAL_RETURNED | Kind.TRIAL_STOPPED | Kind.TRIAL_FAILED | Kind.TRIAL_CANCELLED
            ):
                self._move(data["number"], _STATES[Kind(event.kind)])
            case Kind.JOB_SUCCEEDED | Kind.JOB_FAILED | Kind.JOB_CANCELLED:
                self.state = JobState(event.kind.removeprefix("JOB_"))
                self.reason, self.ended_at = data.get("reason", ""), event.at

    def _enter(self, phase: Phase, at: datetime) -> None:
        self.phase, self.state = phase, phase.state
        station = self.stations[phase]
        station.started_at = station.started_at or at
        if phase is Phase.SEARCH:
            station.total = self.spec["search"]["trials"]

    def _finish(self, phase: Phase, result: Mapping[str, Any], at: datetime) -> None:
        station = self.stations[phase]
        station.ended_at, station.result = at, result
        station.started_at = station.started_at or at
        if phase is Phase.TEACHER:
            self.teacher_accuracy = result["accuracy"]
        if phase is Phase.SURVEY:
            self.teacher_cost, self.limits = result["cost"], result["limits"]
            self.levels = [Budget(limits) for limits in result.get("levels") or [result["limits"]]]

    def _score(self, data: Mapping[str, Any]) -> None:
        contender = self.contenders[data["number"]]
        contender.rungs = max(contender.rungs, data["rung"] + 1)
        contender.accuracy, contender.kl = data["accuracy"], data["kl"]
        self.course.append(max([data["accuracy"], *self.course[-1:]]))
        self._move(data["number"], State.COMPLETED if data["last"] else State.PENDING)

    def _move(self, number: int, state: State) -> None:
        self.contenders[number].state = state
        tried = sum(found.rungs > 0 or found.state.terminal for found in self.contenders.values())
        self.stations[Phase.SEARCH].done = tried


_STATES = {
    Kind.TRIAL_STARTED: State.RUNNING,
    Kind.TRIAL_RETURNED: State.PENDING,
    Kind.TRIAL_STOPPED: State.STOPPED,
    Kind.TRIAL_FAILED: State.FAILED,
    Kind.TRIAL_CANCELLED: State.CANCELLED,
}
