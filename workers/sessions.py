"""
What is handed out next in the search.

A session decides from the record alone: a driver that takes over a job makes the same session again and it goes on
where the record ends.
"""

from __future__ import annotations

import logging
import math
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
from workers.ports import Claim, Ledger, Wish
from workers.scores import Scores

logger = logging.getLogger("stillhouse.session")

_QUIET_SECONDS = 1.0


class Watch(Protocol):
    """How a session learns that it shall stop, and shows that it is alive."""

    def stopping(self) -> bool: ...

    def wish(self) -> Wish:
        """Why."""
        ...

    def alive(self) -> None: ...


class SearchSession:
    """
    Proposes trials, promotes them from rung to rung, and records what becomes of them. What the same network scored in
    the same setting before is not handed out but taken over.

    A new proposal goes before promotion, which is the better the more trials are compared. Of a former driver's trials,
    those it had running are pending again and are handed out first; their attempts stay counted.

    With several levels, loosest first, a trial belongs to the tightest whose budget it keeps, is compared with those of
    its level alone, and may in the end be a finalist of every level that it fits.

    `trials` tells how many there may be in all, when that is not what the spec says; it is asked again now and then,
    for a user may raise it.
    """

    def __init__(
        self,
        claim: Claim,
        ledger: Ledger,
        scores: Scores,
        spec: JobSpec,
        costs: CostModel,
        strategy: Strategy,
        rungs: Rungs,
        levels: Sequence[Budget],
        watch: Watch,
        trials: Callable[[], int] | None = None,
    ) -> None:
        self._claim, self._ledger, self._scores, self._spec, self._watch = claim, ledger, scores, spec, watch
        self._wanted = trials or (lambda: spec.search.trials)
        self._limit, self._looks = self._wanted(), Pace()
        self._costs, self._strategy, self._rungs, self._levels = costs, strategy, rungs, levels
        self._trials = {trial.id: trial for trial in ledger.trials(claim.job_id)}
        self._exhausted = False
        self._pace = Pace()
        self._recall()

    def _recall(self) -> None:
        """Lets the strategy know what is on record."""
        for trial in self._trials.values():
            self._strategy.tell(trial)

    @property
    def slots(self) -> int:
        return self._spec.resources.concurrent_trials

    def next(self) -> Assignment | Wait | None:
        while trial := self._due():
            trial = self._remember(self._ledger.start_trial(self._claim, trial.id))
            assignment = self._assignment(trial)
            known = self._scores.find(assignment.write)
            if known is None:
                return assignment
            self._watch.alive()
            self._settle(self._scored(trial, known, cached=True))
            if self.stopping():
                break
        return WAIT if any(other.state is State.RUNNING for other in self._trials.values()) else None

    def progress(self, assignment: Assignment, progress: Progress) -> None:
        self._watch.alive()
        if self._pace.due():
            told = {"phase": "search", "trial": assignment.number, "step": progress.step, "of": assignment.stop}
            loss = {"loss": progress.loss} if math.isfinite(progress.loss) else {}
            self._ledger.note(self._claim, "PROGRESS", told | loss)

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        self._watch.alive()
        trial = self._trials[assignment.trial]
        if not isinstance(outcome, Done):
            logger.warning("trial %d: %s", trial.number, outcome.message, extra={"trial_id": trial.id})
        match outcome:
            case Done():
                trial = self._scored(trial, outcome)
            case Failed():
                reason = f"{outcome.code}: {outcome.message}"
                trial = self._ledger.close_trial(self._claim, trial.id, State.FAILED, reason)
            case _ if trial.attempt >= self._spec.resources.attempts:
                reason = f"INFRASTRUCTURE_EXHAUSTED: {trial.attempt} machines died below it; last: {outcome.message}"
                trial = self._ledger.close_trial(self._claim, trial.id, State.FAILED, reason)
            case _:
                trial = self._ledger.return_trial(self._claim, trial.id, outcome.message)
        self._settle(trial)

    def _scored(self, trial: Trial, done: Done, *, cached: bool = False) -> Trial:
        score = Score(trial.rung, done.step, done.accuracy, done.kl, done.seconds, cached)
        last = trial.rung + 1 == len(self._rungs.steps)
        return self._ledger.score_trial(self._claim, trial.id, score, last=last, worker=done.worker)

    def _settle(self, trial: Trial) -> None:
        """An assignment of the trial has come to its end."""
        self._strategy.tell(self._remember(trial))

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

    def _due(self) -> Trial | None:
        """The trial that is to be taken further next."""
        return self._interrupted() or self._proposed() or self._promotable()

    def _by_level(self) -> list[list[Trial]]:
        groups: list[list[Trial]] = [[] for _ in self._levels]
        for trial in self._trials.values():
            groups[level_of(self._levels, trial.cost)].append(trial)
        return groups

    def _promotable(self) -> Trial | None:
        to_come = 0 if self._exhausted else max(0, self._limit - len(self._trials))
        found = [trial for group in self._by_level() if (trial := self._rungs.promotable(group, to_come))]
        return max(found, key=lambda trial: trial.rung, default=None)

    def _interrupted(self) -> Trial | None:
        """A trial that was proposed, promoted or under way when its worker or its driver died."""
        trials = self._trials.values()
        return next((trial for trial in trials if trial.state is State.PENDING and self._was_due(trial)), None)

    @staticmethod
    def _was_due(trial: Trial) -> bool:
        return not trial.scores or trial.attempt > 0

    def _proposed(self) -> Trial | None:
        if len(self._trials) >= self._limit and self._looks.due():
            self._limit = self._wanted()
        return None if len(self._trials) >= self._limit else self._propose()

    def _propose(self) -> Trial | None:
        """What the strategy asks for next, put on record; None when it has nothing left to ask for."""
        if self._exhausted:
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
            seed=self._spec.search.seed,
            read=self._scores.key(trial.choices, trial.rung - 1) if trial.scores else None,
            fresh=False,
            write=self._scores.key(trial.choices, trial.rung),
        )

    def _remember(self, trial: Trial) -> Trial:
        self._trials[trial.id] = trial
        return trial


class Pace:
    """Lets one event a second through: the record keeps progress for people, not for every step."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._last = clock, -_QUIET_SECONDS

    def due(self) -> bool:
        if self._clock() - self._last < _QUIET_SECONDS:
            return False
        self._last = self._clock()
        return True
