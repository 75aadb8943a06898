"""
Costs in closed form.

A cost is a sum of terms, each a whole coefficient times a product of variables; a variable is a number that follows
from the choices at one or two sites. A peak is the largest of several such sums. A measured cost has a finer sum below
it, because a multiplication takes less than a nanosecond; a rate is so many in the time that its sum says.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Variables = tuple[int, ...]

_ROWS = 2048
"""Candidates evaluated at once; their terms then stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Variable:
    """
    A whole number that follows from the choices at `sites`.

    `values` has one entry for every combination of choices, rising, the last site's changing fastest.
    """

    sites: tuple[int, ...]
    values: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Term:
    """`coefficient` times the product of the variables of these numbers; a square names its variable twice."""

    coefficient: int
    variables: Variables = ()


Terms = tuple[Term, ...]


def total(*parts: Iterable[Term]) -> Terms:
    """The sum, with equal products gathered and zeros left out; in a fixed order."""
    sums: dict[Variables, int] = {}
    for part in parts:
        for term in part:
            sums[term.variables] = sums.get(term.variables, 0) + term.coefficient
    return tuple(Term(coefficient, variables) for variables, coefficient in sorted(sums.items()) if coefficient)


def product(*factors: Iterable[Term]) -> Terms:
    """The product, expanded; the empty product is 1."""
    result: Terms = (Term(1),)
    for factor in factors:
        terms = tuple(factor)
        result = total(
            Term(a.coefficient * b.coefficient, tuple(sorted(a.variables + b.variables))) for a in result for b in terms
        )
    return result


@dataclass(frozen=True)
class Polynomials:
    """
    Several costs over the same sites; coefficients and values of variables are not negative.

    `choices` are those of every site, rising. `sums[metric]` is a sum of terms, `peaks[metric]` the largest of several.
    A sum in `fractions` counts fractions of its metric's unit, so many to one: the cost is that part of it, rounded up.
    A metric in `rates` is that number divided by its sum, rounded down; it falls where the sum rises.

    Every product of variables is split into two factors, so that a sum is the sum over f of f * (Q @ g)_f with Q
    sparse. That is worked out in floating point, which is exact as long as no cost reaches 2**53.
    """

    choices: Sequence[tuple[int, ...]]
    variables: Sequence[Variable]
    sums: Mapping[str, Terms]
    peaks: Mapping[str, tuple[Terms, ...]] = field(default_factory=dict)
    fractions: Mapping[str, int] = field(default_factory=dict)
    rates: Mapping[str, int] = field(default_factory=dict)

    def ceiling(self, metric: str, limit: int) -> int:
        """
        The largest value of a metric's sum, or of each sum of its peak, with which it keeps `limit`, a whole number
        above zero: the largest cost, or the least rate.
        """
        if metric in self.rates:
            return self.rates[metric] // limit
        return limit * self.fractions.get(metric, 1)

    def cost(self, metric: str, value: float) -> int:
        """What a value of a metric's sum comes to in the metric's own unit."""
        if metric in self.rates:
            return int(self.rates[metric] // max(value, 1))
        return math.ceil(value / self.fractions.get(metric, 1))

    def __call__(self, choices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """`{metric: [n]}` for choices `[n, sites]`, each one of its site's."""
        metrics = [*self.sums, *self.peaks]
        costs = np.empty((len(metrics), len(choices)), dtype=np.int64)
        for start in range(0, len(choices), _ROWS):
            rows = slice(start, start + _ROWS)
            values = self._values(choices[rows])
            left, right = _products(values, self._factored.firsts), _products(values, self._factored.seconds)
            for cost, matrix in zip(costs, self._factored.sums, strict=False):
                cost[rows] = np.einsum("fn,fn->n", left, matrix @ right)
            if self.peaks:
                every = _products(values, self._linear.products)
                for cost, matrix in zip(costs[len(self.sums) :], self._linear.peaks, strict=True):
                    cost[rows] = (matrix @ every).max(axis=0)
        for metric, cost in zip(metrics, costs, strict=True):
            if metric in self.rates:
                cost[:] = self.rates[metric] // np.maximum(cost, 1)
            elif metric in self.fractions:
                cost[:] = -(-cost // self.fractions[metric])
        return dict(zip(metrics, costs, strict=True))

    def _values(self, choices: NDArray[np.int64]) -> NDArray[np.float64]:
        """`[variables, n]`."""
        columns = np.ascontiguousarray(choices.T)
        values = np.empty((len(self.variables), len(choices)))
        positions: dict[int, NDArray[np.int64]] = {}
        for row, (variable, unit) in enumerate(zip(self.variables, self._units, strict=True)):
            if unit:
                np.divide(columns[variable.sites[0]], unit, out=values[row])
                continue
            at = np.zeros(len(choices), dtype=np.int64)
            for site in variable.sites:
                if site not in positions:
                    positions[site] = np.searchsorted(np.asarray(self.choices[site]), columns[site])
                at = at * len(self.choices[site]) + positions[site]
            values[row] = np.asarray(variable.values, dtype=np.float64)[at]
        return values

    @cached_property
    def _units(self) -> list[int]:
        """For variables that are their site's choice over a whole number, that number; 0 for the others."""
        return [self._unit(variable) for variable in self.variables]

    def _unit(self, variable: Variable) -> int:
        choices = self.choices[variable.sites[0]]
        unit = choices[-1] // variable.values[-1] if variable.values[-1] else 0
        linear = len(variable.sites) == 1 and all(
            value * unit == choice for value, choice in zip(variable.values, choices, strict=True)
        )
        return unit if linear else 0

    @cached_property
    def _factored(self) -> _Factored:
        split = {term.variables: _halves(term.variables) for terms in self.sums.values() for term in terms}
        firsts = sorted({first for first, _ in split.values()})
        seconds = sorted({second for _, second in split.values()})
        row_of = {first: row for row, first in enumerate(firsts)}
        column_of = {second: column for column, second in enumerate(seconds)}
        matrices = []
        for terms in self.sums.values():
            rows = [row_of[split[term.variables][0]] for term in terms]
            columns = [column_of[split[term.variables][1]] for term in terms]
            matrices.append(_matrix(terms, rows, columns, (len(firsts), len(seconds))))
        return _Factored(firsts, seconds, matrices)

    @cached_property
    def _linear(self) -> _Linear:
        products = sorted({term.variables for peak in self.peaks.values() for terms in peak for term in terms})
        column_of = {one: column for column, one in enumerate(products)}
        matrices = []
        for peak in self.peaks.values():
            flat = [(row, term) for row, terms in enumerate(peak) for term in terms]
            columns = [column_of[term.variables] for _, term in flat]
            shape = (len(peak), len(products))
            matrices.append(_matrix([term for _, term in flat], [row for row, _ in flat], columns, shape))
        return _Linear(products, matrices)


@dataclass(frozen=True, slots=True)
class _Factored:
    """First factors f, second factors g, and for every sum Q `[f, g]`."""

    firsts: list[Variables]
    seconds: list[Variables]
    sums: list[csr_array]


@dataclass(frozen=True, slots=True)
class _Linear:
    """All products of the peaks, and for every peak the coefficients `[sums, products]`."""

    products: list[Variables]
    peaks: list[csr_array]


def _matrix(terms: Sequence[Term], rows: list[int], columns: list[int], shape: tuple[int, int]) -> csr_array:
    values = np.array([term.coefficient for term in terms], dtype=np.float64)
    return csr_array((values, (rows, columns)), shape=shape)


def _halves(variables: Variables) -> tuple[Variables, Variables]:
    middle = len(variables) // 2
    return variables[:middle], variables[middle:]


def _products(values: NDArray[np.float64], products: list[Variables]) -> NDArray[np.float64]:
    """`[products, n]` from the values of the variables `[variables, n]`."""
    results = np.ones((len(products), values.shape[1]))
    for result, variables in zip(results, products, strict=True):
        for variable in variables:
            result *= values[variable]
    return results
