"""What the trials of a job come to, as far as it is told without listing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.rungs import Rungs
from search.trial import Score, State, Trial


@dataclass(frozen=True, slots=True)
class Placed:
    """A trial without what it is made of."""

    id: str
    number: int
    cost: Mapping[str, int]
    score: Score | None
    """Its last."""


@dataclass(frozen=True, slots=True)
class Standing:
    counts: Mapping[State, int]
    """By every state there is."""
    promoted: int
    """Scored at more than one rung, whatever became of them then."""
    known: int
    """Of which every score was known from before."""
    settled: int
    """Scored at least once, or at an end without it."""
    best: Placed | None
    """As `Rungs.best` finds it; it has a score."""
    trials: Mapping[str, Placed]
    """By id: those that the results of the job's phases name, if not more."""

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def standing_of(trials: Sequence[Trial]) -> Standing:
    """Of a job with these trials."""
    counts = dict.fromkeys(State, 0)
    for trial in trials:
        counts[trial.state] += 1
    return Standing(
        counts=counts,
        promoted=sum(len(trial.scores) > 1 for trial in trials),
        known=sum(bool(trial.scores) and all(score.cached for score in trial.scores) for trial in trials),
        settled=sum(bool(trial.scores) or trial.state.terminal for trial in trials),
        best=next(map(_placed, Rungs.best(trials, 1)), None),
        trials={trial.id: _placed(trial) for trial in trials},
    )


def _placed(trial: Trial) -> Placed:
    return Placed(trial.id, trial.number, dict(trial.cost), trial.score)
