"""
One question about the candidates of a space: the least of something under limits.

Decided by whole numbers where they suffice, else by a programme whose answers are counted again before they are
believed. Limits go into the programme with some slack, so that rounding hides nothing that fits; what comes out over
its limit is taken out, and the question asked again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from search.costs.gates import Gate, active
from search.costs.linear import Expression, Programme, Row
from search.costs.polynomial import Polynomials, Terms
from search.costs.reduced import Reduced, Table, reduced

Outcome = Literal["optimal", "feasible", "infeasible", "unknown"]
Rows = NDArray[np.int64]

_ENUMERATED = 1 << 13
"""Up to so many combinations are counted one by one."""
_SLACK = 1e-6
"""Relative slack of limits in the programme, above the rounding of its solver."""
_ATTEMPTS = 24
"""How often an answer that does not stand is taken out before the question is left undecided."""
_ALIKE = 1e-6
"""Relative difference below which two values that are not whole numbers are not told apart."""


@dataclass(frozen=True)
class Answer:
    """
    `choices` `[sites]`, one of each site's and void sites at their last, with its `value`; both None without any.

    No candidate has a value below `bound`. `optimal`: the value is proved least; `infeasible`: it is proved that there
    is none; `feasible`: time was up before the proof; `unknown`: time was up before a candidate was found.
    """

    outcome: Outcome
    choices: Rows | None = None
    value: float | None = None
    bound: float = -math.inf
    columns: int = 0
    """Size of the programme; 0 where none was needed."""

    @property
    def proved(self) -> bool:
        return self.outcome in ("optimal", "infeasible")

    @property
    def gap(self) -> float:
        """By how much, as a share of the value, an unknown candidate could be better; infinite without a value."""
        if self.value is None:
            return math.inf
        return max(0.0, (self.value - self.bound) / max(abs(self.value), 1e-12))


@dataclass(frozen=True, slots=True)
class Goal:
    """
    What shall be least: the largest of the sums, each divided by its unit; a unit of -1 asks for the largest of one.

    With `table`, the sum of its numbers at the sites that are not void instead. With neither, all are alike.
    """

    sums: Sequence[tuple[Terms, int]] = ()
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class Demand:
    """The sum of the numbers of `table` at the sites that are not void is at most `at_most`."""

    table: Table
    at_most: float


@dataclass(frozen=True)
class Question:
    """
    `at_most` and `at_least` limit sums; with `any_will_do` the first candidate found is the answer, and with `gap` one
    that is proved to be worse than the best by about that share at most.
    """

    polynomials: Polynomials
    gates: Mapping[int, Gate]
    goal: Goal
    at_most: Sequence[tuple[Terms, int]] = ()
    at_least: Sequence[tuple[Terms, int]] = ()
    demands: Sequence[Demand] = ()
    any_will_do: bool = False
    gap: float = 0.0

    def answer(self, seconds: float) -> Answer:
        """Within about so many seconds."""
        deadline = time.monotonic() + seconds
        left = self._reduced()
        if left is None:
            return Answer("infeasible", bound=math.inf)
        if left.size <= _ENUMERATED:
            return self._counted(left)
        return self._solved(left, deadline)

    def _reduced(self) -> Reduced | None:
        """What is not certain; None when it is certain that some limit cannot be kept."""
        sums: dict[str, Terms] = {}
        signs: dict[str, int] = {}
        tables: dict[str, Table] = {}
        for at, (terms, unit) in enumerate(self.goal.sums):
            sums[f"goal {at}"], signs[f"goal {at}"] = terms, 1 if unit > 0 else -1
        for at, (terms, _) in enumerate(self.at_most):
            sums[f"at most {at}"], signs[f"at most {at}"] = terms, 1
        for at, (terms, _) in enumerate(self.at_least):
            sums[f"at least {at}"], signs[f"at least {at}"] = terms, -1
        if self.goal.table is not None:
            tables["harm"], signs["harm"] = self.goal.table, 1
        for at, demand in enumerate(self.demands):
            tables[f"demand {at}"], signs[f"demand {at}"] = demand.table, 1
        left = reduced(self.polynomials, self.gates, sums, signs, tables)
        kept = self._kept_anyway(left)
        while kept:
            for name in kept:
                del left.sums[name]
            left.settle()
            kept = self._kept_anyway(left)
        for name, limit in self._limits(left).items():
            least, most = left.limits_of(left.sums[name])
            if least > limit if left.signs[name] > 0 else most < limit:
                return None
        return left

    def _limits(self, left: Reduced) -> dict[str, int]:
        """Of the sums that can still break theirs."""
        limits = {f"at most {at}": limit for at, (_, limit) in enumerate(self.at_most)}
        limits |= {f"at least {at}": limit for at, (_, limit) in enumerate(self.at_least)}
        return {name: limit for name, limit in limits.items() if name in left.sums}

    def _kept_anyway(self, left: Reduced) -> list[str]:
        kept = []
        for name, limit in self._limits(left).items():
            least, most = left.limits_of(left.sums[name])
            if most <= limit if left.signs[name] > 0 else least >= limit:
                kept.append(name)
        return kept

    def _counted(self, left: Reduced) -> Answer:
        rows = left.rows()
        fitting = np.flatnonzero(self._fits(rows))
        if not len(fitting):
            return Answer("infeasible", bound=math.inf)
        values = self._values(rows[fitting])
        best = int(values.argmin())
        value = values[best].item()
        return Answer("optimal", self._canonical(rows[fitting[best]]), value, value)

    def _solved(self, left: Reduced, deadline: float) -> Answer:
        programme = Programme(left)
        step = math.gcd(*(term.coefficient for terms, _ in self.goal.sums for term in terms if term.variables)) or 1
        whole = len(self.goal.sums) == 1 and abs(self.goal.sums[0][1]) == 1
        scale, goals = self._goals(programme, left)
        limits, taken_out = self._rows(programme, left), list[Row]()
        best: tuple[float, Rows] | None = None
        bound = -math.inf
        for attempt in range(_ATTEMPTS):
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                break
            gap = 0.5 if self.any_will_do else self.gap
            found = programme.solve(goals, limits, taken_out, seconds=seconds, slack=_SLACK, gap=gap)
            bound = math.inf if found.infeasible else max(bound, found.bound * scale)
            if found.positions is not None:
                row = self._row(left, found.positions)
                if self._fits(row[None])[0]:
                    value = self._values(row[None])[0].item()
                    if best is None or value < best[0]:
                        best = (value, row)
                    if self.any_will_do:
                        break
                taken_out.append(programme.excluded(found.positions))
            within = step * (1 - 1e-6) if whole else _ALIKE * max(abs(best[0]), 1e-12) if best else 0.0
            if (best is not None and best[0] - bound < within) or bound == math.inf:
                bound = best[0] if best else bound
                break
            if found.positions is None or not found.complete or (self.gap and best is not None):
                break
            if attempt == 2 and best is None:
                best = self._strictly(programme, left, goals, deadline)
        return self._concluded(best, bound, programme.columns)

    def _concluded(self, best: tuple[float, Rows] | None, bound: float, columns: int) -> Answer:
        if best is None:
            return Answer("infeasible" if bound == math.inf else "unknown", bound=bound, columns=columns)
        value, row = best
        return Answer("optimal" if value <= bound else "feasible", self._canonical(row), value, bound, columns)

    def _strictly(
        self, programme: Programme, left: Reduced, goals: Sequence[tuple[Expression, float]], deadline: float
    ) -> tuple[float, Rows] | None:
        """The best candidate that stays clear of every limit by more than the solver's rounding."""
        found = programme.solve(
            goals, self._rows(programme, left), (), seconds=deadline - time.monotonic(), slack=-_SLACK
        )
        if found.positions is None:
            return None
        row = self._row(left, found.positions)
        return (self._values(row[None])[0].item(), row) if self._fits(row[None])[0] else None

    def _goals(self, programme: Programme, left: Reduced) -> tuple[float, list[tuple[Expression, float]]]:
        """The goals as expressions of ordinary size, and what their value is to be multiplied by."""
        if self.goal.table is not None:
            largest = sum(max(map(abs, numbers)) for numbers in self.goal.table) or 1.0
            scale = largest / 1000
            return scale, [(programme.expression("harm"), scale)]
        units = {f"goal {at}": unit for at, (_, unit) in enumerate(self.goal.sums)}
        largest = max((left.limits_of(left.sums[name])[1] / abs(unit) for name, unit in units.items()), default=0)
        scale = max(largest, 1e-12) / 1000
        return scale, [(programme.expression(name), unit * scale) for name, unit in units.items()] or [({}, 1.0)]

    def _rows(self, programme: Programme, left: Reduced) -> list[Row]:
        rows = []
        for name, limit in self._limits(left).items():
            low, high = (-math.inf, limit) if left.signs[name] > 0 else (limit, math.inf)
            rows.append((programme.expression(name), low, high))
        for at, demand in enumerate(self.demands):
            rows.append((programme.expression(f"demand {at}"), -math.inf, demand.at_most))
        return rows

    def _row(self, left: Reduced, positions: Sequence[int]) -> Rows:
        return np.array([left.choices[site][left.open[site][at]] for site, at in enumerate(positions)], dtype=np.int64)

    def _fits(self, rows: Rows) -> NDArray[np.bool_]:
        fitting = np.ones(len(rows), dtype=bool)
        limited = [*self.at_most, *self.at_least]
        if limited:
            values = self._sums(rows, [terms for terms, _ in limited])
            for at, (_, limit) in enumerate(limited):
                fitting &= values[at] <= limit if at < len(self.at_most) else values[at] >= limit
        for demand in self.demands:
            fitting &= self._added(rows, demand.table) <= demand.at_most + 1e-9 * max(abs(demand.at_most), 1.0)
        return fitting

    def _values(self, rows: Rows) -> NDArray[np.int64] | NDArray[np.float64]:
        """`[n]` for rows `[n, sites]`; whole numbers for one sum with unit 1 or -1."""
        if self.goal.table is not None:
            return self._added(rows, self.goal.table)
        if not self.goal.sums:
            return np.zeros(len(rows), dtype=np.int64)
        values = self._sums(rows, [terms for terms, _ in self.goal.sums])
        units = [unit for _, unit in self.goal.sums]
        whole = all(abs(unit) == 1 for unit in units)
        shares = [value * unit if whole else value / unit for value, unit in zip(values, units, strict=True)]
        largest: NDArray[np.int64] | NDArray[np.float64] = np.max(shares, axis=0)
        return largest

    def _sums(self, rows: Rows, sums: Sequence[Terms]) -> list[NDArray[np.int64]]:
        named = {str(at): terms for at, terms in enumerate(sums)}
        return list(Polynomials(self.polynomials.choices, self.polynomials.variables, named)(rows).values())

    def _added(self, rows: Rows, table: Table) -> NDArray[np.float64]:
        total = np.zeros(len(rows))
        shown = active(self.gates, self.polynomials.choices, rows)
        for site, numbers in enumerate(table):
            positions = np.searchsorted(self.polynomials.choices[site], rows[:, site])
            total += np.where(shown[:, site], np.asarray(numbers, dtype=np.float64)[positions], 0.0)
        return total

    def _canonical(self, row: Rows) -> Rows:
        last = np.array([choices[-1] for choices in self.polynomials.choices], dtype=np.int64)
        canonical: Rows = np.where(active(self.gates, self.polynomials.choices, row[None])[0], row, last)
        return canonical
