"""
Exact optimisation over the costs of a space.

What is smallest, what fits a budget, which limits contradict each other and what would have to give: answered for all
students of a teacher at once, though there are too many to count. Pure numpy and scipy.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search.costs.gates import Gate, gates_of
from search.costs.polynomial import Polynomials, Terms
from search.costs.question import Answer, Demand, Goal, Question
from search.costs.reduced import Table, undominated

Limits = Mapping[str, int]


@dataclass(frozen=True)
class Relaxed:
    """
    The budget nearest to an impossible one that can be kept.

    With every largest value `factor` times as wide there is a student and, when `proved`, with a smaller factor there
    is none. `limits` are the old ones, those in the way raised to the cost of the student with `choices` `[sites]`.
    `alone[metric]` is what that limit would have to be were all others kept; None where no value of it helps.
    """

    factor: float
    limits: Limits
    choices: NDArray[np.int64]
    alone: Mapping[str, int | None]
    proved: bool


class Planner:
    """
    Answers for one space. A question that takes longer than `seconds` is answered with what is known by then.

    Metrics are the sums and peaks of `polynomials`. `at_most` are largest values allowed, `at_least` least ones, of
    sums only.
    """

    def __init__(self, polynomials: Polynomials, *, seconds: float = 20.0) -> None:
        self._polynomials, self._seconds = polynomials, seconds

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self._polynomials.sums, *self._polynomials.peaks)

    def minimise(
        self,
        objective: str | Table,
        at_most: Limits | None = None,
        at_least: Limits | None = None,
        demands: Sequence[Demand] = (),
    ) -> Answer:
        """
        The candidate with the least cost in a metric, within all limits and demands.

        Or with the least harm: a table has a number for every choice of every site (`objective[site][position]`),
        which add up over the sites that are not void.
        """
        if isinstance(objective, str):
            goal = Goal([(terms, 1) for terms in self._sums_of(objective)])
        else:
            goal = Goal(table=objective)
        return self._question(goal, at_most or {}, at_least or {}, demands).answer(self._seconds)

    def maximise(self, metric: str, at_most: Limits | None = None, at_least: Limits | None = None) -> Answer:
        """The candidate with the largest cost in a metric. No candidate within the limits is above `bound`."""
        answers = []
        for terms in self._sums_of(metric):
            goal = Goal([(terms, -1)])
            answers.append(self._question(goal, at_most or {}, at_least or {}, ()).answer(self._seconds))
        best = min(answers, key=lambda answer: math.inf if answer.value is None else answer.value)
        if best.value is None:
            return answers[0]
        bound = min(answer.bound for answer in answers)
        outcome = best.outcome if best.value <= bound else "feasible"
        return Answer(outcome, best.choices, -best.value, -bound, max(answer.columns for answer in answers))

    def bounds(self) -> dict[str, tuple[int, int]]:
        """By metric the least and the largest cost of any candidate; what cannot be proved in time is left wider."""
        least = {metric: self.minimise(metric).bound for metric in self.metrics}
        most = {metric: self.maximise(metric).bound for metric in self.metrics}
        return {metric: (math.ceil(least[metric]), math.floor(most[metric])) for metric in self.metrics}

    def fit(self, at_most: Limits, at_least: Limits | None = None) -> Answer:
        """
        A candidate that keeps all limits; `infeasible` when it is proved that there is none.

        Its value is its largest cost relative to the limit, and not the least there is.
        """
        return self._question(self._widest(at_most), at_most, at_least or {}, (), any_will_do=True).answer(
            self._seconds
        )

    def conflicts(self, at_most: Limits, at_least: Limits | None = None) -> tuple[tuple[str, ...], ...]:
        """
        Sets of limits that cannot be kept together though every part of the set can; smallest first.

        All that are impossible alone and all impossible pairs of the others; where there are neither, one larger set.
        A set is listed only when that is proved. Empty when all limits can be kept.
        """
        limits = {**at_most, **(at_least or {})}

        def impossible(metrics: Sequence[str]) -> bool:
            return (
                self.fit(
                    {metric: at_most[metric] for metric in metrics if metric in at_most},
                    {metric: limits[metric] for metric in metrics if metric not in at_most},
                ).outcome
                == "infeasible"
            )

        alone = [(metric,) for metric in limits if impossible([metric])]
        others = [metric for metric in limits if (metric,) not in alone]
        pairs = [pair for pair in itertools.combinations(others, 2) if impossible(pair)]
        if alone or pairs:
            return (*alone, *pairs)
        if len(others) < 3 or not impossible(others):
            return ()
        needed = others
        for metric in others:
            fewer = [other for other in needed if other != metric]
            if impossible(fewer):
                needed = fewer
        return (tuple(needed),)

    def relax(self, at_most: Limits, at_least: Limits | None = None) -> Relaxed | None:
        """The nearest budget that can be kept; None when not even the lower limits can, or none was found in time."""
        nearest = self._question(self._widest(at_most), {}, at_least or {}, ()).answer(self._seconds)
        if nearest.choices is None or nearest.value is None:
            return None
        cost = self.costs(nearest.choices)
        alone = {}
        for metric, limit in at_most.items():
            others = {other: value for other, value in at_most.items() if other != metric}
            least = self.minimise(metric, others, at_least)
            alone[metric] = None if least.value is None else max(int(least.value), limit)
        return Relaxed(
            max(nearest.value, 1.0),
            {metric: max(limit, cost[metric]) for metric, limit in at_most.items()},
            nearest.choices,
            alone,
            nearest.proved,
        )

    def costs(self, choices: NDArray[np.int64]) -> dict[str, int]:
        """Of one candidate `[sites]`."""
        return {metric: int(values[0]) for metric, values in self._polynomials(choices[None]).items()}

    def _question(
        self, goal: Goal, at_most: Limits, at_least: Limits, demands: Sequence[Demand], *, any_will_do: bool = False
    ) -> Question:
        return Question(
            self._polynomials,
            self._gates,
            goal,
            [(terms, limit) for metric, limit in at_most.items() for terms in self._sums_of(metric)],
            [(self._polynomials.sums[metric], limit) for metric, limit in at_least.items()],
            demands,
            any_will_do,
        )

    def _widest(self, at_most: Limits) -> Goal:
        """The largest cost relative to its limit."""
        return Goal([(terms, max(limit, 1)) for metric, limit in at_most.items() for terms in self._sums_of(metric)])

    def _sums_of(self, metric: str) -> Sequence[Terms]:
        """The largest of these is the cost."""
        sums = self._polynomials.sums.get(metric)
        return self._peaks[metric] if sums is None else [sums]

    @cached_property
    def _peaks(self) -> Mapping[str, Sequence[Terms]]:
        return {metric: undominated(sums) for metric, sums in self._polynomials.peaks.items()}

    @cached_property
    def _gates(self) -> Mapping[int, Gate]:
        return gates_of(self._polynomials)
