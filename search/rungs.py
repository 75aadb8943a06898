"""
Which trial is trained further: asynchronous successive halving (Li et al., 2020, algorithm 2), by our own rule.

A rung is a training length. Of the n trials that have a score at a rung, the best `n // reduction` may go on to the
next one; nobody waits for a rung to fill. A trial that is not promoted keeps its scores, and whether it is stopped is
known only when no trial can join its rung any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from search.trial import State, Trial


@dataclass(frozen=True, slots=True)
class Rungs:
    """`steps` are the training lengths, rising; one trial in `reduction` is promoted."""

    steps: tuple[int, ...]
    reduction: int

    def promotable(self, trials: Sequence[Trial]) -> Trial | None:
        """The best waiting trial of the highest rung from which one may go on, or None."""
        for rung in reversed(range(len(self.steps) - 1)):
            scored = self._ranked(trials, rung)
            for trial in scored[: len(scored) // self.reduction]:
                if trial.rung == rung + 1 and trial.state is State.PENDING:
                    return trial
        return None

    def through(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        """Those that go on from a rung at which all `trials` have been scored or have failed: one at least."""
        scored = self._ranked(trials, rung)
        return scored[: max(1, len(scored) // self.reduction)]

    def leader(self, trials: Sequence[Trial]) -> Trial | None:
        """
        The waiting trial to promote when nothing else is left to do and no trial stands on the last rung.

        Without it a search of fewer trials than `reduction` would end before the last rung.
        """
        if self._ranked(trials, len(self.steps) - 1):
            return None
        for rung in reversed(range(len(self.steps) - 1)):
            waiting = [trial for trial in self._ranked(trials, rung) if trial.state is State.PENDING]
            if waiting:
                return waiting[0]
        return None

    @staticmethod
    def best(trials: Sequence[Trial], count: int) -> list[Trial]:
        """The `count` best trials: higher rungs first, then the score at that rung. Failed trials are left out."""
        scored = [trial for trial in trials if trial.score is not None and trial.state is not State.FAILED]
        return sorted(scored, key=lambda trial: (-trial.rung, *_order(trial, trial.rung - 1)))[:count]

    @staticmethod
    def _ranked(trials: Sequence[Trial], rung: int) -> list[Trial]:
        return sorted((trial for trial in trials if trial.rung > rung), key=lambda trial: _order(trial, rung))


def _order(trial: Trial, rung: int) -> tuple[float, float, int]:
    """Sorts the better trial first; equal scores by number, so that every replay decides alike."""
    first, second = trial.scores[rung].rank
    return (-first, -second, trial.number)
