"""
Who is trained long, and who of those becomes a student: functions of what is on record and nothing else.

Levels go from loose to tight. The finalists of a level are chosen among all trials that fit it, so whoever is a
finalist of one level and fits a tighter one is a finalist of that one too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from search.budget import Budget
from search.front import Front, chosen
from search.trial import Trial
from workers.results import FinalistResult


class Hopeless(Exception):
    """Nothing is left that could become the student; the text is the job's reason."""


class Wanted(Protocol):
    """Who is to be trained long."""

    def __call__(self, known: Mapping[str, float | None]) -> Sequence[Trial]:
        """
        The finalists to be trained by now, the known ones included. `known` are validation accuracies by trial, None
        for one that failed. Who was wanted once stays wanted when more is known.
        """
        ...


def reaches(accuracy: float | None, floor: float) -> bool:
    """Whether an accuracy, a quotient of whole numbers in floating point, is at or above a floor; None is not."""
    return accuracy is not None and accuracy >= floor - 1e-9


@dataclass(frozen=True)
class Everyone:
    """The finalists of all levels, each once."""

    levels: Sequence[Sequence[Trial]]

    def __call__(self, known: Mapping[str, float | None]) -> list[Trial]:
        return list({trial.id: trial for finalists in self.levels for trial in finalists}.values())


@dataclass(frozen=True)
class Bisection:
    """
    Halves the levels until the cheapest that keeps an accuracy is known: when one finalist of a level does, the search
    goes on below it, else above. Whoever takes the job over comes to the same levels by the same scores.
    """

    levels: Sequence[Sequence[Trial]]
    floor: float
    """Least validation accuracy, 0..1."""

    def __call__(self, known: Mapping[str, float | None]) -> list[Trial]:
        wanted: dict[str, Trial] = {}
        passing, failing, level = -1, len(self.levels), self._first()
        while passing < level < failing:
            finalists = self.levels[level]
            wanted |= {trial.id: trial for trial in finalists}
            if any(trial.id not in known for trial in finalists):
                break
            if any(reaches(known[trial.id], self.floor) for trial in finalists):
                passing = level
            else:
                failing = level
            level = (passing + failing) // 2
        return list(wanted.values())

    def _first(self) -> int:
        """The tightest level at which the search's short training has reached the floor already, else the middle."""
        found = (
            level
            for level, finalists in enumerate(self.levels)
            if any(trial.score is not None and reaches(trial.score.accuracy, self.floor) for trial in finalists)
        )
        return max(found, default=(len(self.levels) - 1) // 2)


def best_of_levels(
    levels: Sequence[Budget],
    ranked: Sequence[FinalistResult],
    trials: Mapping[str, Trial],
    cost: Callable[[Trial, int], Mapping[str, int]] = lambda trial, level: trial.cost,
) -> list[FinalistResult]:
    """
    For every level the best of all finalists that fit it, those of tighter levels among them. `cost` says what a trial
    costs at a level; where none fits by it, those do that were searched for it.

    Raises:
        Hopeless: no finalist of a level came through.
    """
    winners = []
    for level, budget in enumerate(levels):
        fitting = [result for result in ranked if budget.holds(cost(trials[result.trial], level))]
        searched = [result for result in ranked if budget.holds(trials[result.trial].cost)]
        winner = next(iter(fitting or searched), None)
        if winner is None:
            raise Hopeless(f"every finalist of {named(levels, level)} failed")
        winners.append(winner)
    return winners


def cheapest(
    ranked: Sequence[FinalistResult], trials: Mapping[str, Trial], metric: str, floor: float
) -> FinalistResult:
    """
    The cheapest finalist that keeps the accuracy; of equally cheap ones the best.

    Raises:
        Hopeless: none does; names the best that was reached.
    """
    passing = [result for result in ranked if reaches(result.accuracy, floor)]
    if not passing:
        best, cost = ranked[0], trials[ranked[0].trial].cost[metric]
        raise Hopeless(
            f"no student keeps the accuracy: {floor:.2%} on validation are asked for, and the best finalist reached "
            f"{best.accuracy:.2%} with {cost:,} {metric}. Lower the floor, train the finalists longer "
            "(`finalists.steps`), or search more (`search.trials`)"
        )
    return min(passing, key=lambda result: trials[result.trial].cost[metric])


def front_of(ranked: Sequence[FinalistResult], trials: Mapping[str, Trial], front: Front) -> list[FinalistResult]:
    """The finalists that no other beats in accuracy and in all costs, the dearest by the first cost first."""
    losses = front.losses([result.accuracy for result in ranked], [trials[result.trial].cost for result in ranked])
    unbeaten = [ranked[at] for at in chosen(losses, len(ranked))]
    return sorted(unbeaten, key=lambda result: -trials[result.trial].cost[front.costs[0]])


def named(levels: Sequence[Budget], level: int) -> str:
    """`level 2 (macs <= 400)`."""
    verdicts = levels[level].judge(levels[level].limits)
    limits = ", ".join(f"{found.metric} {'>=' if found.at_least else '<='} {found.limit:,}" for found in verdicts)
    return f"level {level + 1} ({limits})"
