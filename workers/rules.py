"""
The rules of jobs and trials: what may follow what, and the event that tells of it.

Pure functions from a value to the next one. Every ledger keeps its rows by these, so that the record in memory and the
one in a database cannot come to differ in what they allow.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from search.errors import IllegalTransition, KeyReused, NonFinite, NotFound, Outdated, StaleClaim
from search.trial import Score, State, Trial
from workers.events import Kind
from workers.ports import Artifact, Claim, JobState, Line, Phase, Wish

CANCELLED = "cancelled by the user"
PAUSED = "its user has paused the job"
DRIVER_DIED = "the driver that had it is gone"


class Happening(NamedTuple):
    """An event before the ledger gives it a number and a time."""

    kind: str
    data: Mapping[str, Any]


class Changed(NamedTuple):
    trial: Trial
    happening: Happening


def plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """
    A copy of `document` as JSON would bring it back.

    Raises:
        NonFinite: it holds NaN or an infinity, which JSON cannot write and no reader expects.
    """
    try:
        copy: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    except ValueError as error:
        raise NonFinite(f"only finite numbers are put on record: {error}") from None
    return copy


def exhausted(spec: Mapping[str, Any], fruitless: int) -> bool:
    """Whether a job that was claimed `fruitless` times in a row without progress is given up."""
    return fruitless > int(spec["resources"]["attempts"])


def given_up(fruitless: int) -> str:
    return f"INFRASTRUCTURE_EXHAUSTED: {fruitless} drivers in a row ended without progress"


def next_state(state: JobState, phase: Phase) -> JobState:
    """
    The state of a job in `state` that goes into `phase`.

    Raises:
        IllegalTransition: the job has come further than that.
    """
    if _ORDER[phase.state] < _ORDER[state]:
        raise IllegalTransition(f"a job that is {state} cannot go back to the phase {phase}")
    return phase.state


_ORDER = {state: place for place, state in enumerate(JobState)}


def entered(phase: Phase) -> Happening:
    return Happening(Kind.PHASE_ENTERED, {"phase": phase})


def finished(phase: Phase, result: Mapping[str, Any]) -> Happening:
    return Happening(Kind.PHASE_FINISHED, {"phase": phase, "result": result})


def kept(name: str, artifact: Artifact) -> Happening:
    return Happening(Kind.ARTIFACT_KEPT, {"name": name, "bytes": artifact.bytes, "sha256": artifact.sha256})


LOG_LINES = 10_000
"""That are kept of a job's log."""
_LONGEST_MESSAGE = 4000


def cut_line(line: Line) -> Line:
    """As it is kept: no text of any length."""
    message = line.message
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]}... ({len(message):,} characters)"
    return replace(line, logger=line.logger[:128], message=message, trial=line.trial and line.trial[:64])


def closed_job(state: JobState, reason: str) -> Happening:
    """Raises `IllegalTransition` when `state` is no end."""
    if not state.terminal:
        raise IllegalTransition(f"a job is closed as SUCCEEDED, FAILED or CANCELLED, not {state}")
    return Happening(Kind(f"JOB_{state}"), {"reason": reason})


def wish(*, cancel: bool, pause: bool) -> Wish:
    """Of two that are asked for, the end."""
    if cancel:
        return Wish.CANCEL
    return Wish.PAUSE if pause else Wish.GO_ON


def may_pause(job_id: str, state: JobState, *, cancel_requested: bool) -> None:
    """Raises `IllegalTransition` when there is nothing to pause, or to resume."""
    if state.terminal:
        raise at_its_end(job_id, state)
    if cancel_requested:
        raise IllegalTransition(f"{job_id} is being cancelled; it does not pause, and does not go on")


def may_be_deleted(job_id: str, state: JobState) -> None:
    """Raises `IllegalTransition` while the job goes on."""
    if not state.terminal:
        raise IllegalTransition(f"{job_id} is {state}; cancel it first, and delete it when it has ended")


_OPEN_TO_CHANGE = ("labels", "priority", "budget", "search/trials")


def changed_spec(
    state: JobState, before: Mapping[str, Any], after: Mapping[str, Any], *, in_search: bool, searched: bool
) -> Happening | None:
    """
    What is told of a job in `state` whose user puts `after` in the place of the spec `before`; None when they are
    equal. `in_search` says that the search has begun, `searched` that it is over.

    Labels may always change, and a priority until the end. What the job has come past stays: a budget is that of the
    survey, so it may change as long as nobody has taken the job; trials may become more until the search is over.

    Raises:
        IllegalTransition: the job has come too far for that.
    """
    changes = {f"/{path}": (_at(before, path), _at(after, path)) for path in _OPEN_TO_CHANGE}
    changes = {path: values for path, values in changes.items() if values[0] != values[1]}
    if changes.keys() - {"/labels"} and state.terminal:
        raise IllegalTransition(f"the job is {state}, and only its labels can change; clone it with what you want")
    if "/budget" in changes and state is not JobState.QUEUED:
        raise IllegalTransition(
            f"the job is {state}: its space and its plan are made for the budget that it has; clone it with the new "
            "one, which uses again all that was trained"
        )
    if "/search/trials" in changes:
        few, wanted = changes["/search/trials"]
        if searched:
            raise IllegalTransition("the search of the job is over; clone it with more trials")
        if in_search and wanted < few:
            raise IllegalTransition(f"the search of the job has begun: its {few} trials can only become more")
    told = {path: {"from": old, "to": new} for path, (old, new) in changes.items()}
    return Happening(Kind.JOB_CHANGED, {"changes": told}) if told else None


def _at(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for step in path.split("/"):
        value = value[step]
    return value


def outdated(job_id: str, asked: int, found: int) -> Outdated:
    return Outdated(f"{job_id} is at revision {found} by now, not {asked}; read it again and decide anew")


def opened(trial: Trial, trial_id: str, number: int) -> Changed:
    trial = Trial(
        id=trial_id,
        number=number,
        key=trial.key,
        choices=dict(trial.choices),
        origin=dict(trial.origin),
        cost=dict(trial.cost),
        extra=None if trial.extra is None else plain(trial.extra),
    )
    return _changed(trial, Kind.TRIAL_PROPOSED, choices=dict(trial.choices), cost=dict(trial.cost))


def started(trial: Trial) -> Changed:
    _expect(trial, State.PENDING, "started")
    trial = replace(trial, state=State.RUNNING, attempt=trial.attempt + 1)
    return _changed(trial, Kind.TRIAL_STARTED, rung=trial.rung, attempt=trial.attempt)


def scored(trial: Trial, score: Score, *, last: bool, worker: str | None = None) -> Changed | None:
    """
    None when the trial already has a score of that rung.

    Raises:
        NonFinite: a number of the score is NaN or infinite.
        IllegalTransition: the trial is not running, or a rung would be left out.
    """
    if not all(map(math.isfinite, (score.accuracy, score.kl, score.seconds))):
        raise NonFinite(f"trial {trial.number}: a score has only finite numbers, not {score}")
    if score.rung < trial.rung:
        return None
    _expect(trial, State.RUNNING, "scored")
    if score.rung > trial.rung:
        raise IllegalTransition(f"trial {trial.number} is at rung {trial.rung}; a score of rung {score.rung} skips one")
    state = State.COMPLETED if last else State.PENDING
    trial = replace(trial, state=state, attempt=0, scores=(*trial.scores, score))
    return _changed(
        trial,
        Kind.TRIAL_SCORED,
        rung=score.rung,
        step=score.step,
        accuracy=score.accuracy,
        kl=score.kl,
        cached=score.cached,
        last=last,
        worker=worker,
    )


def returned(trial: Trial, reason: str) -> Changed:
    _expect(trial, State.RUNNING, "returned")
    return _changed(replace(trial, state=State.PENDING), Kind.TRIAL_RETURNED, reason=reason)


def rested(trial: Trial) -> Changed:
    """As if it had not been started: a pause is no fault of the machine below it."""
    _expect(trial, State.RUNNING, "returned")
    trial = replace(trial, state=State.PENDING, attempt=trial.attempt - 1)
    return _changed(trial, Kind.TRIAL_RETURNED, reason=PAUSED)


def closed(trial: Trial, state: State, reason: str) -> Changed:
    if state not in (State.STOPPED, State.FAILED, State.CANCELLED):
        raise IllegalTransition(f"a trial is closed as STOPPED, FAILED or CANCELLED, not {state}")
    if trial.state.terminal:
        raise IllegalTransition(f"trial {trial.number} is {trial.state}; that is an end")
    return _changed(replace(trial, state=state, reason=reason), Kind(f"TRIAL_{state}"), reason=reason)


_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")


def check_key(key: str) -> str:
    """
    The key of an artifact, if it is one: parts of letters, digits, `.`, `_` and `-`, none beginning with a dot.

    Raises:
        ValueError: it is not, which is a mistake of the program: keys are never made from what a user wrote.
    """
    if len(key) > 1024 or not _KEY.fullmatch(key):
        raise ValueError(f"not the key of an artifact: {key!r}")
    return key


def _expect(trial: Trial, state: State, verb: str) -> None:
    if trial.state is not state:
        raise IllegalTransition(f"trial {trial.number} is {trial.state}; only one that is {state} can be {verb}")


def _changed(trial: Trial, kind: Kind, **data: Any) -> Changed:
    return Changed(trial, Happening(kind, {"trial": trial.id, "number": trial.number, **data}))


def no_such_job(job_id: str) -> NotFound:
    return NotFound(f"there is no job `{job_id}`")


def stale(claim: Claim) -> StaleClaim:
    return StaleClaim(f"claim {claim.token} of {claim.job_id} is over: another driver owns the job now")


def at_its_end(job_id: str, state: JobState) -> IllegalTransition:
    return IllegalTransition(f"{job_id} is {state}; that is an end")


def key_reused(key: str) -> KeyReused:
    return KeyReused(
        f"the idempotency key `{key}` came before with another request; send the same request again, or a new key"
    )


def no_such_trial(job_id: str, trial_id: str) -> NotFound:
    return NotFound(f"{job_id} has no trial `{trial_id}`")


def no_such_artifact(key: str) -> NotFound:
    return NotFound(f"there is no artifact `{key}`")


def never_entered(phase: Phase) -> IllegalTransition:
    return IllegalTransition(f"the phase {phase} was never entered, so it cannot be finished")
