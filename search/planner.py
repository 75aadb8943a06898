"""
Exact optimisation over the costs of a space.

What is smallest, what fits a budget, which limits contradict each other and what would have to give: answered for all
students of a teacher at once, though there are too many to count. Pure numpy and scipy.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from search.costs.gates import Gate, active, gates_of
from search.costs.polynomial import Polynomials, Terms
from search.costs.question import Answer, Demand, Goal, Question
from search.costs.reduced import Table, undominated

Limits = Mapping[str, int]
"""By metric the largest cost allowed; of a rate the least."""


@dataclass(frozen=True)
class Relaxed:
    """
    The budget nearest to an impossible one that can be kept.

    With every limit `factor` times as wide there is a student and, when `proved`, with a smaller factor there is none.
    `limits` are the old ones, those in the way widened to the cost of the student with `choices` `[sites]`.
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

    Metrics are the sums and peaks of `polynomials`. `floors` are least values, of sums that are no rates.
    """

    def __init__(self, polynomials: Polynomials, *, seconds: float = 20.0) -> None:
        self._polynomials, self._seconds = polynomials, seconds

    @property
    def metrics(self) -> tuple[str, ...]:
        return (*self._polynomials.sums, *self._polynomials.peaks)

    def minimise(
        self,
        objective: str | Table,
        limits: Limits | None = None,
        floors: Limits | None = None,
        demands: Sequence[Demand] = (),
    ) -> Answer:
        """
        The candidate with the least cost in a metric, or the least rate, within all limits, floors and demands.

        Or with the least harm: a table has a number for every choice of every site (`objective[site][position]`),
        which add up over the sites that are not void.
        """
        if not isinstance(objective, str):
            return self._ask(Goal(table=objective), limits, floors, demands)
        if objective in self._polynomials.rates:
            return self._in_units(objective, self._largest(objective, limits, floors, demands))
        return self._in_units(objective, self._smallest(objective, limits, floors, demands))

    def diverse(
        self,
        table: Table,
        limits: Limits | None = None,
        count: int = 8,
        *,
        apart: float = 0.2,
        gap: float = 0.05,
    ) -> list[Answer]:
        """
        Up to `count` candidates of little harm within all limits, the least harmful first, no two of them alike.

        Any two differ at a share of `apart` of the sites that are not void in the earlier one; two steps, or the whole
        way where a site has but two choices, make a whole site, one step half of one. The first is the optimum, and
        each further one is the least harmful that differs from all before it, but for about `gap`. All of them together
        take about `seconds`, half of which the first may take; fewer come back when there are no more, or time is up.
        """
        began = time.monotonic()
        answers: list[Answer] = []
        demands: list[Demand] = []
        for left in range(count, 0, -1):
            spare = self._seconds - (time.monotonic() - began)
            if answers and spare <= 0:
                break
            answer = self._ask(
                Goal(table=table),
                limits,
                None,
                demands,
                gap=gap if answers else 0.0,
                seconds=spare / min(left, 2) if not answers else max(spare / left, min(spare, 1.0)),
            )
            if answer.choices is None:
                return answers or [answer]
            answers.append(answer)
            demands.append(self._unlike(answer.choices, apart))
        return sorted(answers, key=lambda answer: math.inf if answer.value is None else answer.value)

    def _unlike(self, choices: NDArray[np.int64], apart: float) -> Demand:
        """That a candidate is so far from another one, `[sites]`."""
        shown = active(self._gates, self._polynomials.choices, choices[None])[0]
        table = []
        for site, offered in enumerate(self._polynomials.choices):
            steps = np.abs(np.arange(len(offered)) - offered.index(int(choices[site])))
            alike = np.maximum(0.0, 1 - steps / max(1, min(len(offered) - 1, 2)))
            table.append((alike * (shown[site] and len(offered) > 1)).tolist())
        sites = sum(max(likeness) for likeness in table)
        return Demand(table, (1 - apart) * sites if sites else -1.0)

    def maximise(
        self, metric: str, limits: Limits | None = None, floors: Limits | None = None, demands: Sequence[Demand] = ()
    ) -> Answer:
        """The candidate with the largest cost in a metric, or the largest rate. None allowed is above `bound`."""
        if metric in self._polynomials.rates:
            return self._in_units(metric, self._smallest(metric, limits, floors, demands))
        return self._in_units(metric, self._largest(metric, limits, floors, demands))

    def best(self, metric: str, limits: Limits | None = None) -> Answer:
        """The candidate with the smallest cost in a metric, or the largest rate."""
        return (self.maximise if metric in self._polynomials.rates else self.minimise)(metric, limits)

    def bounds(self) -> dict[str, tuple[int, int]]:
        """By metric the least and the largest cost of any candidate; what cannot be proved in time is left wider."""
        least = {metric: self.minimise(metric).bound for metric in self.metrics}
        most = {metric: self.maximise(metric).bound for metric in self.metrics}
        return {metric: (math.ceil(least[metric]), math.floor(most[metric])) for metric in self.metrics}

    def fit(self, limits: Limits, floors: Limits | None = None) -> Answer:
        """
        A candidate that keeps all limits; `infeasible` when it is proved that there is none.

        Its value is its largest cost relative to the limit, which need not be the least there is.
        """
        return self._ask(self._widest(limits), limits, floors, any_will_do=True)

    def conflicts(self, limits: Limits) -> tuple[tuple[str, ...], ...]:
        """
        Sets of limits that cannot be kept together though every part of the set can; smallest first.

        All that are impossible alone and all impossible pairs of the others; where there are neither, one larger set.
        A set is listed only when that is proved. Empty when all limits can be kept.
        """

        def impossible(metrics: Sequence[str]) -> bool:
            return self.fit({metric: limits[metric] for metric in metrics}).outcome == "infeasible"

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

    def relax(self, limits: Limits) -> Relaxed | None:
        """The nearest budget that can be kept; None when none was found in time."""
        nearest = self._ask(self._widest(limits), {}, {})
        if nearest.choices is None or nearest.value is None:
            return None
        alone = {}
        for metric in limits:
            others = {other: limit for other, limit in limits.items() if other != metric}
            needed = self.best(metric, others).value
            alone[metric] = None if needed is None else self._wider(metric, limits[metric], int(needed))
        cost = self.costs(nearest.choices)
        relaxed = {metric: self._wider(metric, limit, cost[metric]) for metric, limit in limits.items()}
        return Relaxed(max(nearest.value, 1.0), relaxed, nearest.choices, alone, nearest.proved)

    def costs(self, choices: NDArray[np.int64]) -> dict[str, int]:
        """Of one candidate `[sites]`."""
        return {metric: int(values[0]) for metric, values in self._polynomials(choices[None]).items()}

    def _wider(self, metric: str, one: int, other: int) -> int:
        return min(one, other) if metric in self._polynomials.rates else max(one, other)

    def _smallest(self, metric: str, limits: Limits | None, floors: Limits | None, demands: Sequence[Demand]) -> Answer:
        """The least of a metric's sum."""
        return self._ask(Goal([(terms, 1) for terms in self._sums_of(metric)]), limits, floors, demands)

    def _largest(self, metric: str, limits: Limits | None, floors: Limits | None, demands: Sequence[Demand]) -> Answer:
        """The largest of a metric's sum or of its peak's sums; the promising first, and no more than are needed."""
        ceilings = {terms: self._ceiling(terms) for terms in self._sums_of(metric)}
        answers: list[Answer] = []
        reached = -math.inf
        for terms in sorted(ceilings, key=ceilings.__getitem__, reverse=True):
            if ceilings[terms] <= reached:
                break
            answers.append(self._ask(Goal([(terms, -1)]), limits, floors, demands))
            reached = max(reached, *(-answer.value for answer in answers if answer.value is not None), -math.inf)
        best = min(answers, key=lambda answer: math.inf if answer.value is None else answer.value)
        if best.value is None:
            return best
        bound = min(answer.bound for answer in answers)
        outcome = best.outcome if best.value <= bound else "feasible"
        return Answer(outcome, best.choices, -best.value, -bound, max(answer.columns for answer in answers))

    def _ceiling(self, terms: Terms) -> int:
        """Not below a sum, whatever is chosen."""
        largest = self._largest_values
        return sum(term.coefficient * math.prod(largest[at] for at in term.variables) for term in terms)

    @cached_property
    def _largest_values(self) -> list[int]:
        return [max(variable.values) for variable in self._polynomials.variables]

    def _in_units(self, metric: str, answer: Answer) -> Answer:
        """Of an answer about a metric's sum, the same about its cost."""
        if answer.choices is None or metric not in {*self._polynomials.fractions, *self._polynomials.rates}:
            return answer
        value = float(self.costs(answer.choices)[metric])
        if answer.outcome == "optimal":
            bound = value
        elif metric in self._polynomials.rates:
            bound = self._polynomials.rates[metric] / max(answer.bound, 1.0)
        else:
            bound = answer.bound / self._polynomials.fractions[metric]
        return replace(answer, value=value, bound=bound)

    def _ask(
        self,
        goal: Goal,
        limits: Limits | None,
        floors: Limits | None,
        demands: Sequence[Demand] = (),
        *,
        any_will_do: bool = False,
        gap: float = 0.0,
        seconds: float | None = None,
    ) -> Answer:
        costs = self._polynomials
        at_most = [
            (terms, costs.ceiling(metric, limit))
            for metric, limit in (limits or {}).items()
            for terms in self._sums_of(metric)
        ]
        at_least = [
            (costs.sums[metric], (floor - 1) * costs.fractions.get(metric, 1) + 1)
            for metric, floor in (floors or {}).items()
        ]
        question = Question(costs, self._gates, goal, at_most, at_least, demands, any_will_do, gap)
        return question.answer(self._seconds if seconds is None else seconds)

    def _widest(self, limits: Limits) -> Goal:
        """The largest cost relative to its limit."""
        return Goal(
            [
                (terms, max(self._polynomials.ceiling(metric, limit), 1))
                for metric, limit in limits.items()
                for terms in self._sums_of(metric)
            ]
        )

    def _sums_of(self, metric: str) -> Sequence[Terms]:
        """The largest of these decides the cost."""
        terms = self._polynomials.sums.get(metric)
        return self._peaks[metric] if terms is None else [terms]

    @cached_property
    def _peaks(self) -> Mapping[str, Sequence[Terms]]:
        return {metric: undominated(sums) for metric, sums in self._polynomials.peaks.items()}

    @cached_property
    def _gates(self) -> Mapping[int, Gate]:
        return gates_of(self._polynomials)
