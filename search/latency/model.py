"""Counted costs and measured ones side by side, for whoever searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from search.costs.polynomial import Polynomials, Term, Terms, Variable, total
from search.latency.fit import BlockCosts, Timing, timing
from search.latency.reading import Comparison
from search.latency.table import Table
from search.limits import Measurement
from search.space import Candidate, Space

_SECOND = 10**9


class Counted(Protocol):
    """What a survey knows."""

    @property
    def space(self) -> Space: ...

    @property
    def polynomials(self) -> Polynomials: ...

    @property
    def block_costs(self) -> BlockCosts: ...

    @property
    def cost(self) -> Mapping[str, int]: ...

    def costs_of(self, choices: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]: ...

    def bounds(self) -> Mapping[str, tuple[int, int]]: ...


class Timed:
    """
    The costs of a survey and predicted times: `latency`, in whole nanoseconds a batch, or `throughput`, in whole
    images a second; each learned from a table, with the measurement of that table.
    """

    def __init__(self, found: Counted, tables: Mapping[str, Table]) -> None:
        self._found = found
        counted = found.polynomials
        self.timings: dict[str, Timing] = {
            metric: timing(table, found.space, counted, found.block_costs) for metric, table in tables.items()
        }
        variables: list[Variable] = list(counted.variables)
        sums: dict[str, Terms] = {}
        fractions: dict[str, int] = {}
        rates: dict[str, int] = {}
        for metric, learned in self.timings.items():
            sums[metric] = _moved(learned, len(counted.variables), len(variables))
            variables.extend(learned.extra)
            if metric == "throughput":
                rates[metric] = tables[metric].measurement.batch * _SECOND * learned.fraction
            else:
                fractions[metric] = learned.fraction
        self._times = Polynomials(counted.choices, variables, sums, fractions=fractions, rates=rates)
        self.polynomials = replace(
            self._times,
            sums={**counted.sums, **sums},
            peaks=counted.peaks,
            fractions={**counted.fractions, **fractions},
            rates={**counted.rates, **rates},
        )

    @property
    def space(self) -> Space:
        return self._found.space

    def costs_of(self, choices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """`{metric: [n]}` for choices `[n, sites]`: exact where counted, predicted where measured."""
        return {**self._found.costs_of(choices), **self._times(choices)}

    def costs(self, candidates: Sequence[Candidate]) -> dict[str, NDArray[np.int64]]:
        """The same of n candidates."""
        return self.costs_of(self.space.array(candidates))

    @property
    def cost(self) -> Mapping[str, int]:
        """The teacher's own; of times, what is predicted for the widest student."""
        times = self._times(self.space.array([self.space.full()]))
        return {**self._found.cost, **{metric: int(values[0]) for metric, values in times.items()}}

    def bounds(self) -> dict[str, tuple[int, int]]:
        """Those of the survey and, of times, the predictions for the least of every site and for the teacher."""
        ends = self._times(self.space.array([self.space.least(), self.space.full()]))
        times = {metric: (int(values.min()), int(values.max())) for metric, values in ends.items()}
        return {**self._found.bounds(), **times}


def value(metric: str, found: Comparison, measurement: Measurement, *, relative_to: int | None = None) -> int:
    """
    What a student's measurement comes to in the unit of its metric, `first` being the student and `second` its teacher.

    Where a limit is relative, the ratio counts and not the time: the value is that many times the teacher's on record.
    """
    if metric == "throughput":
        rate = measurement.batch * _SECOND // found.first.nanoseconds
        return rate if relative_to is None else int(relative_to / found.ratio)
    return found.first.nanoseconds if relative_to is None else round(relative_to * found.ratio)


def _moved(learned: Timing, base: int, start: int) -> Terms:
    """The terms with their extra variables, which follow `base` of the survey's, numbered from `start`."""
    return total(
        Term(term.coefficient, tuple(at if at < base else at - base + start for at in term.variables))
        for term in learned.terms
    )
