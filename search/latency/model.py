"""Counted costs and measured ones side by side, for whoever searches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from search.costs.polynomial import Polynomials, Term, Terms, Variable, total
from search.latency.fit import Timing
from search.space import Space

_SECOND = 10**9


class Counted(Protocol):
    """What a survey knows."""

    @property
    def space(self) -> Space: ...

    @property
    def polynomials(self) -> Polynomials: ...

    def costs_of(self, choices: NDArray[np.int64]) -> Mapping[str, NDArray[np.int64]]: ...


class Timed:
    """
    The costs of a survey and predicted times: `latency`, in whole nanoseconds a batch, or `throughput`, in whole
    images a second.

    `timings` has the metrics, each with its own measurement; `batches` says how many images a batch of it has.
    `corrections` multiply predicted times by what was measured over what had been predicted.
    """

    def __init__(
        self,
        found: Counted,
        timings: Mapping[str, Timing],
        batches: Mapping[str, int],
        corrections: Mapping[str, Fraction] | None = None,
    ) -> None:
        self._found, self._timings, self._batches = found, timings, batches
        counted = found.polynomials
        variables: list[Variable] = list(counted.variables)
        sums: dict[str, Terms] = {}
        fractions: dict[str, int] = {}
        rates: dict[str, int] = {}
        for metric, timing in timings.items():
            factor = (corrections or {}).get(metric, Fraction(1))
            sums[metric] = _moved(timing, len(counted.variables), len(variables), factor)
            variables.extend(timing.extra)
            if metric == "throughput":
                rates[metric] = batches[metric] * _SECOND * timing.fraction
            else:
                fractions[metric] = timing.fraction
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

    def corrected(self, corrections: Mapping[str, Fraction]) -> Timed:
        """The same with other corrections."""
        return Timed(self._found, self._timings, self._batches, corrections)


def _moved(timing: Timing, base: int, start: int, factor: Fraction) -> Terms:
    """The terms with their extra variables, which follow `base` of the survey's, numbered from `start`."""
    return total(
        Term(
            round(term.coefficient * factor),
            tuple(at if at < base else at - base + start for at in term.variables),
        )
        for term in timing.terms
    )
