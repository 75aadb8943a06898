"""
What is handed out next, in the two phases that train candidates.

Both sessions decide from the record alone: a driver that takes over a job makes the same sessions again and they go on
where the record ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from search.budget import Budget, level_of
from search.plugins import CostModel, Proposal, Strategy
from search.rungs import Rungs
from search.spec import JobSpec
from search.trial import Score, State, Trial
from workers.assignment import Assignment, Done, Failed, Outcome, Progress
from workers.backends.base import WAIT, Wait
from workers.finals import Wanted
from workers.ports import Artifacts, Claim, Ledger
from workers.results import FinalistResult

logger = logging.getLogger("stillhouse.session")

_QUIET_SECONDS = 1.0


class Watch(Protocol):
    """How a session learns that it shall stop, and shows that it is alive."""

    def stopping(self) -> bool: ...

    def alive(self) -> None: ...


class SearchSession:
    """
    Proposes trials, promotes them from rung to rung, and records what becomes of them.

    Promotion goes before a new proposal. Of a former driver's trials, those it had running are pending again and are
    handed out first; their attempts stay counted.

    With several levels, loosest first, a trial belongs to the tightest whose budget it keeps, is compared with those of
    its level alone, and may in the end be a finalist of every level that it fits.

    `trials` is how many there may be in all, when that is not what the spec says.
    """

    def __init__(
        self,
        claim: Claim,
        ledger: Ledger,
        spec: JobSpec,
        costs: CostModel,
        strategy: Strategy,
        rungs: Rungs,
        levels: Sequence[Budget],
        watch: Watch,
        trials: int | None = None,
    ) -> None:
        self._claim, self._ledger, self._spec, self._watch = claim, ledger, spec, watch
        self._limit = spec.search.trials if trials is None else trials
        self._costs, self._strategy, self._rungs, self._levels = costs, strategy, rungs, levels
        self._trials = {trial.id: trial for trial in ledger.trials(claim.job_id)}
        self._exhausted = False
        self._pace = _Pace()
        for trial in self._trials.values():
            strategy.tell(trial)

    @property
    def slots(self) -> int:
        return self._spec.resources.concurrent_trials

    def next(self) -> Assignment | Wait | None:
        trials = list(self._trials.values())
        trial = self._interrupted(trials) or self._promotable() or self._proposed() or self._leader()
        if trial is None:
            return WAIT if any(other.state is State.RUNNING for other in trials) else None
        trial = self._remember(self._ledger.start_trial(self._claim, trial.id))
        return self._assignment(trial)

    def progress(self, assignment: Assignment, progress: Progress) -> None:
        self._watch.alive()
        if self._pace.due():
            self._ledger.note(
                self._claim,
                "PROGRESS",
                {"phase": "search", "trial": assignment.number, "step": progress.step, "of": assignment.stop},
            )

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        self._watch.alive()
        trial = self._trials[assignment.trial]
        match outcome:
            case Done():
                score = Score(trial.rung, outcome.step, outcome.accuracy, outcome.kl, outcome.seconds)
                last = trial.rung + 1 == len(self._rungs.steps)
                trial = self._ledger.score_trial(self._claim, trial.id, score, last=last)
            case Failed():
                reason = f"{outcome.code}: {outcome.message}"
                trial = self._ledger.close_trial(self._claim, trial.id, State.FAILED, reason)
            case _ if trial.attempt >= self._spec.resources.attempts:
                reason = f"INFRASTRUCTURE_EXHAUSTED: {trial.attempt} machines died below it; last: {outcome.message}"
                trial = self._ledger.close_trial(self._claim, trial.id, State.FAILED, reason)
            case _:
                trial = self._ledger.return_trial(self._claim, trial.id, outcome.message)
        self._remember(trial)
        self._strategy.tell(trial)

    def stopping(self) -> bool:
        return self._watch.stopping()

    def conclude(self) -> list[list[Trial]]:
        """Stops the trials that were not promoted and returns the finalists of every level, best first."""
        for trial in self._trials.values():
            if not trial.state.terminal:
                reason = f"not promoted beyond rung {trial.rung - 1}"
                self._remember(self._ledger.close_trial(self._claim, trial.id, State.STOPPED, reason))
        fitting = [[trial for trial in self._trials.values() if budget.holds(trial.cost)] for budget in self._levels]
        return [self._rungs.best(trials, self._spec.finalists.count) for trials in fitting]

    def _by_level(self) -> list[list[Trial]]:
        groups: list[list[Trial]] = [[] for _ in self._levels]
        for trial in self._trials.values():
            groups[level_of(self._levels, trial.cost)].append(trial)
        return groups

    def _promotable(self) -> Trial | None:
        found = [trial for group in self._by_level() if (trial := self._rungs.promotable(group))]
        return max(found, key=lambda trial: trial.rung, default=None)

    def _leader(self) -> Trial | None:
        """Of a level in which nothing is under way that could still come before it."""
        for group in self._by_level():
            if all(trial.state is not State.RUNNING for trial in group) and (leader := self._rungs.leader(group)):
                return leader
        return None

    def _interrupted(self, trials: Sequence[Trial]) -> Trial | None:
        """A trial that was proposed, promoted or under way when its worker or its driver died."""
        return next((trial for trial in trials if trial.state is State.PENDING and self._was_due(trial)), None)

    @staticmethod
    def _was_due(trial: Trial) -> bool:
        return not trial.scores or trial.attempt > 0

    def _proposed(self) -> Trial | None:
        if self._exhausted or len(self._trials) >= self._limit:
            return None
        proposal = self._strategy.ask()
        if proposal is None:
            self._exhausted = True
            logger.info("the strategy has nothing left to propose after %d trials", len(self._trials))
            return None
        return self._remember(self._ledger.open_trial(self._claim, self._trial(proposal)))

    def _trial(self, proposal: Proposal) -> Trial:
        costs = self._costs.costs_of(self._costs.space.array([proposal.candidate]))
        return Trial(
            id="",
            number=0,
            key=proposal.candidate.key,
            choices=proposal.candidate.as_dict(),
            origin=proposal.origin.as_dict(),
            cost={metric: int(values[0]) for metric, values in costs.items()},
            extra=proposal.extra,
        )

    def _assignment(self, trial: Trial) -> Assignment:
        start = trial.scores[-1].step if trial.scores else 0
        stop = self._rungs.steps[trial.rung]
        return Assignment(
            trial=trial.id,
            number=trial.number,
            choices=dict(trial.choices),
            schedule="search",
            start=start,
            stop=stop,
            # Every rung ends a cosine of its own, so that scores compare networks that have settled.
            cosine=(start, stop),
            read=_rung_key(self._claim, trial.id, start) if start else None,
            fresh=False,
            write=_rung_key(self._claim, trial.id, stop),
        )

    def _remember(self, trial: Trial) -> Trial:
        self._trials[trial.id] = trial
        return trial


class FinalistsSession:
    """
    Trains the finalists long, each in stretches with a checkpoint after every one.

    Who is `wanted` may depend on how the first ones did. How far a finalist has come is told by the checkpoints that
    exist, so a taken-over job repeats one stretch of each at most.
    """

    def __init__(
        self,
        claim: Claim,
        ledger: Ledger,
        artifacts: Artifacts,
        spec: JobSpec,
        wanted: Wanted,
        watch: Watch,
    ) -> None:
        self._claim, self._ledger, self._artifacts, self._spec, self._watch = claim, ledger, artifacts, spec, watch
        self._wanted = wanted
        self._under_way: set[str] = set()
        self._attempts: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._results: dict[str, FinalistResult] = {}
        self._reached: dict[str, int] = {}
        self._pace = _Pace()

    @property
    def slots(self) -> int:
        return self._spec.resources.concurrent_trials

    def next(self) -> Assignment | Wait | None:
        for trial in self._finalists():
            if trial.id in self._under_way | self._results.keys() | self._failed.keys():
                continue
            self._under_way.add(trial.id)
            self._attempts[trial.id] = self._attempts.get(trial.id, 0) + 1
            return self._assignment(trial)
        return WAIT if self._under_way else None

    def progress(self, assignment: Assignment, progress: Progress) -> None:
        self._watch.alive()
        self._reached[assignment.trial] = progress.step
        if self._pace.due():
            total = self._spec.finalists.steps * len(self._finalists())
            done = sum(self._reached.values())
            self._ledger.note(self._claim, "PROGRESS", {"phase": "finalists", "done": done, "total": total})

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        self._watch.alive()
        self._under_way.discard(assignment.trial)
        match outcome:
            case Done():
                self._attempts[assignment.trial] = 0
                self._reached[assignment.trial] = outcome.step
                if outcome.step == self._spec.finalists.steps:
                    self._finish(assignment, outcome)
            case Failed():
                self._failed[assignment.trial] = f"{outcome.code}: {outcome.message}"
            case _ if self._attempts[assignment.trial] >= self._spec.resources.attempts:
                self._failed[assignment.trial] = f"INFRASTRUCTURE_EXHAUSTED: {outcome.message}"
            case _:
                self._reached[assignment.trial] = assignment.start

    def stopping(self) -> bool:
        return self._watch.stopping()

    def conclude(self) -> tuple[list[FinalistResult], dict[str, str]]:
        """The finalists that came through, best on validation first, and the reasons of those that did not."""
        ranked = sorted(self._results.values(), key=lambda result: (-result.accuracy, result.kl))
        return ranked, self._failed

    def _finalists(self) -> Sequence[Trial]:
        finalists = self._wanted(
            {trial: result.accuracy for trial, result in self._results.items()} | dict.fromkeys(self._failed)
        )
        for trial in finalists:
            if trial.id not in self._reached:
                self._reached[trial.id] = self._step_of(trial.id)
        return finalists

    def _finish(self, assignment: Assignment, outcome: Done) -> None:
        result = FinalistResult(trial=assignment.trial, accuracy=outcome.accuracy, kl=outcome.kl)
        self._results[assignment.trial] = result
        self._ledger.note(
            self._claim,
            "FINALIST_SCORED",
            {"trial": assignment.trial, "number": assignment.number, "accuracy": outcome.accuracy, "kl": outcome.kl},
        )

    def _steps(self) -> list[int]:
        total, every = self._spec.finalists.steps, self._spec.finalists.checkpoint_every
        return [*range(every, total, every), total]

    def _step_of(self, trial_id: str) -> int:
        """The last checkpoint before the end; the final stretch is always walked, because its score is not kept."""
        reached = [
            step for step in self._steps()[:-1] if self._artifacts.has(finalist_key(self._claim, trial_id, step))
        ]
        return max(reached, default=0)

    def _assignment(self, trial: Trial) -> Assignment:
        start = self._reached[trial.id]
        stop = next(step for step in self._steps() if step > start)
        assert trial.score is not None  # noqa: S101 - finalists are chosen by their scores
        first = _rung_key(self._claim, trial.id, trial.score.step)
        return Assignment(
            trial=trial.id,
            number=trial.number,
            choices=dict(trial.choices),
            schedule="finalists",
            start=start,
            stop=stop,
            cosine=(0, self._spec.finalists.steps),
            read=finalist_key(self._claim, trial.id, start) if start else first,
            fresh=start == 0,
            write=finalist_key(self._claim, trial.id, stop),
        )


class _Pace:
    """Lets one event a second through: the record keeps progress for people, not for every step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, -_QUIET_SECONDS

    def due(self) -> bool:
        if self._clock() - self._last < _QUIET_SECONDS:
            return False
        self._last = self._clock()
        return True


def finalist_key(claim: Claim, trial_id: str, step: int) -> str:
    """Of the checkpoint that a finalist's long training leaves at `step`."""
    return f"jobs/{claim.job_id}/finalists/{trial_id}/step-{step}.safetensors"


def _rung_key(claim: Claim, trial_id: str, step: int) -> str:
    return f"jobs/{claim.job_id}/trials/{trial_id}/step-{step}.safetensors"
