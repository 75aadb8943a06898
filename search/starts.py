"""Candidates known before a search to be worth a trial: little harm by the planner's table, or even widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from search.budget import Budget
from search.costs.reduced import Table
from search.planner import Planner
from search.plugins import CostModel, Start
from search.projection import Projector
from search.space import Candidate

_FAR = 0.3
"""A further optimum that may be this much more harmful than it need be, as a share, was found in too little time."""


def starts(
    costs: CostModel,
    levels: Sequence[Budget],
    table: Table | None = None,
    count: int = 8,
    *,
    seconds: float = 20.0,
) -> list[Start]:
    """
    For every level, in turn, the optimum, the even widths, and further optima, `count` in all; no network twice.

    Without a `table` of harms (a number for every choice of every site, in the order of the space) only the even
    widths. `seconds` is how long the planner may take for all levels together; it is content with fewer optima then.

    Raises:
        BudgetImpossible: no student keeps a level.
    """
    space, groups = costs.space, []
    for level, budget in enumerate(levels):
        found = [Start(Projector(costs, budget).project(space.full()), level, "uniform")]
        if table is not None and count > 1:
            planner = Planner(costs.polynomials, seconds=seconds / len(levels))
            answers = planner.diverse(table, budget.limits, count - 1)
            optima = [
                answer.choices
                for place, answer in enumerate(answers)
                if answer.choices is not None and (place == 0 or answer.gap < _FAR)
            ]
            found[:0] = [Start(_candidate(costs, choices), level, "optimum") for choices in optima[:1]]
            found += [Start(_candidate(costs, choices), level, "optimum") for choices in optima[1:]]
        groups.append(found)
    return _in_turn(groups)


def within(costs: CostModel, levels: Sequence[Budget], found: Sequence[Start]) -> list[Start]:
    """Starts of looser levels, brought within these: those that fit as they are, the others projected."""
    projectors, kept = [Projector(costs, budget) for budget in levels], []
    for start in found:
        row = costs.space.array([start.candidate])
        cost = {metric: int(values[0]) for metric, values in costs.costs_of(row).items()}
        if not levels[start.level].holds(cost):
            start = replace(start, candidate=projectors[start.level].project(start.candidate))
        kept.append(start)
    return kept


def _candidate(costs: CostModel, choices: NDArray[np.int64]) -> Candidate:
    return costs.space.candidate(dict(zip(costs.space.by_name, map(int, choices), strict=True)))


def _in_turn(groups: Sequence[Sequence[Start]]) -> list[Start]:
    known: dict[str, Start] = {}
    for place in range(max(map(len, groups))):
        for group in groups:
            if place < len(group):
                known.setdefault(group[place].candidate.key, group[place])
    return list(known.values())
