"""Some trials scored again with another seed, to tell how much of a score is chance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

from search.rungs import Rungs
from search.spec import JobSpec
from search.trial import Trial
from workers.assignment import Assignment, Done, Failed, Outcome, Progress
from workers.backends.base import WAIT, Session, Wait
from workers.ports import Claim, Ledger
from workers.scores import Scores
from workers.sessions import Watch


def chosen(levels: Sequence[Sequence[Trial]], rungs: Rungs, count: int) -> list[Trial]:
    """So many trials that came to the last rung, the best of each level before the second of any."""
    last = [[trial for trial in rungs.best(trials, len(trials)) if trial.rung == len(rungs.steps)] for trials in levels]
    return [trial for row in zip_longest(*last) for trial in row if trial is not None][:count]


class RepeatsSession:
    """
    Walks the trials through all rungs once more, as they were walked, with the batches in another order.

    Nothing of it is in the ledger: every score is kept as all scores are, so a driver that takes over repeats none.
    """

    def __init__(
        self,
        claim: Claim,
        ledger: Ledger,
        scores: Scores,
        spec: JobSpec,
        trials: Sequence[Trial],
        rungs: Rungs,
        watch: Watch,
    ) -> None:
        self._claim, self._ledger, self._scores, self._spec, self._watch = claim, ledger, scores, spec, watch
        self._steps = rungs.steps
        self._trials = {trial.id: trial for trial in trials}
        self._under_way: set[str] = set()
        self._given_up: set[str] = set()
        self._attempts: dict[str, int] = {}
        self._accuracies: dict[str, float] = {}
        self._known: dict[str, Done] = {}

    @property
    def slots(self) -> int:
        return self._spec.resources.concurrent_trials

    def next(self) -> Assignment | Wait | None:
        for trial in self._trials.values():
            if trial.id in self._under_way | self._given_up | self._accuracies.keys():
                continue
            assignment = self._assignment(trial)
            if assignment is not None:
                self._under_way.add(trial.id)
                self._attempts[trial.id] = self._attempts.get(trial.id, 0) + 1
                return assignment
        return WAIT if self._under_way else None

    def progress(self, assignment: Assignment, progress: Progress) -> None:
        self._watch.alive()

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        self._watch.alive()
        self._under_way.discard(assignment.trial)
        match outcome:
            case Done():
                self._attempts[assignment.trial] = 0
                self._reached(assignment.trial, assignment.write, outcome)
                if outcome.step == self._steps[-1]:
                    said = {"trial": assignment.trial, "number": assignment.number, "accuracy": outcome.accuracy}
                    self._ledger.note(self._claim, "REPEAT_SCORED", said)
            case Failed():
                self._given_up.add(assignment.trial)
            case _ if self._attempts[assignment.trial] >= self._spec.resources.attempts:
                self._given_up.add(assignment.trial)

    def stopping(self) -> bool:
        return self._watch.stopping()

    @property
    def settled(self) -> bool:
        """Whether everything is known, so that no worker is needed."""
        return all(self._assignment(trial) is None for trial in self._trials.values())

    def conclude(self) -> dict[str, tuple[float, float]]:
        """By trial its accuracy at the last rung, and that of the repetition."""
        return {
            trial: (self._trials[trial].scores[-1].accuracy, accuracy) for trial, accuracy in self._accuracies.items()
        }

    def _assignment(self, trial: Trial) -> Assignment | None:
        """The first stretch that nobody has walked yet; None when all have been."""
        seed, start, read = self._spec.search.seed + 1, 0, None
        for rung, stop in enumerate(self._steps):
            write = self._scores.key(trial.choices, rung, seed=seed)
            known = self._known.get(write) or self._scores.find(write)
            if known is None:
                return Assignment(
                    trial=trial.id,
                    number=trial.number,
                    choices=dict(trial.choices),
                    schedule="search",
                    start=start,
                    stop=stop,
                    cosine=(start, stop),
                    seed=seed,
                    read=read,
                    fresh=False,
                    write=write,
                )
            self._reached(trial.id, write, known)
            start, read = stop, write
        return None

    def _reached(self, trial: str, key: str, done: Done) -> None:
        self._known[key] = done
        if done.step == self._steps[-1]:
            self._accuracies[trial] = done.accuracy


class InTurn:
    """One session and then another on the same workers: to start new ones takes seconds."""

    def __init__(self, first: Session, then: Callable[[], Session]) -> None:
        self._session, self._then = first, then
        self._turned = False

    @property
    def slots(self) -> int:
        return self._session.slots

    def next(self) -> Assignment | Wait | None:
        found = self._session.next()
        if found is None and not self._turned:
            self._session, self._turned = self._then(), True
            found = self._session.next()
        return found

    def progress(self, assignment: Assignment, progress: Progress) -> None:
        self._session.progress(assignment, progress)

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        self._session.ended(assignment, outcome)

    def stopping(self) -> bool:
        return self._session.stopping()
