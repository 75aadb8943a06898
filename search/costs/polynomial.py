"""
Costs in closed form.

A cost is a sum of terms, each a whole coefficient times a product of variables: one variable per site, the number of
units kept for a width and 0 or 1 for a removal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Sites = tuple[int, ...]

_ROWS = 2048
"""Candidates evaluated at once; their terms then stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Term:
    """`coefficient` times the product of the variables at `sites`; a square names its site twice."""

    coefficient: int
    sites: Sites = ()


Terms = tuple[Term, ...]


def total(*parts: Iterable[Term]) -> Terms:
    """The sum, with equal products gathered and zeros left out; in a fixed order."""
    sums: dict[Sites, int] = {}
    for part in parts:
        for term in part:
            sums[term.sites] = sums.get(term.sites, 0) + term.coefficient
    return tuple(Term(coefficient, sites) for sites, coefficient in sorted(sums.items()) if coefficient)


def product(*factors: Iterable[Term]) -> Terms:
    """The product, expanded; the empty product is 1."""
    result: Terms = (Term(1),)
    for factor in factors:
        terms = tuple(factor)
        result = total(
            Term(a.coefficient * b.coefficient, tuple(sorted(a.sites + b.sites))) for a in result for b in terms
        )
    return result


@dataclass(frozen=True)
class Polynomials:
    """
    Several costs over the same sites; coefficients and choices are not negative.

    The variable of a site is its choice divided by `units[site]`, or the choice itself.

    Every product of variables is split into two factors, so that a cost is the sum over f of f * (Q @ g)_f with Q
    sparse. That is worked out in floating point, which is exact as long as no cost reaches 2**53.
    """

    terms: Mapping[str, Terms]
    units: Mapping[int, int] = field(default_factory=dict)

    def __call__(self, choices: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """`{metric: [n]}` for choices `[n, sites]`, each a multiple of its site's unit."""
        firsts, seconds, matrices = self._factored
        costs = np.empty((len(matrices), len(choices)), dtype=np.int64)
        for start in range(0, len(choices), _ROWS):
            columns = np.ascontiguousarray(choices[start : start + _ROWS].T, dtype=np.float64)
            for site, unit in self.units.items():
                if unit > 1:
                    columns[site] /= unit
            left, right = _products(columns, firsts), _products(columns, seconds)
            for cost, matrix in zip(costs, matrices, strict=True):
                cost[start : start + _ROWS] = np.einsum("fn,fn->n", left, matrix @ right)
        return dict(zip(self.terms, costs, strict=True))

    @cached_property
    def _factored(self) -> tuple[list[Sites], list[Sites], list[csr_array]]:
        """First factors f, second factors g, and for every cost Q `[f, g]`."""
        split = {term.sites: _halves(term.sites) for terms in self.terms.values() for term in terms}
        firsts = sorted({first for first, _ in split.values()})
        seconds = sorted({second for _, second in split.values()})
        row_of = {first: row for row, first in enumerate(firsts)}
        column_of = {second: column for column, second in enumerate(seconds)}
        matrices = []
        for terms in self.terms.values():
            rows = [row_of[split[term.sites][0]] for term in terms]
            columns = [column_of[split[term.sites][1]] for term in terms]
            values = np.array([term.coefficient for term in terms], dtype=np.float64)
            matrices.append(csr_array((values, (rows, columns)), shape=(len(firsts), len(seconds))))
        return firsts, seconds, matrices


def _halves(sites: Sites) -> tuple[Sites, Sites]:
    middle = len(sites) // 2
    return sites[:middle], sites[middle:]


def _products(columns: NDArray[np.float64], products: list[Sites]) -> NDArray[np.float64]:
    """`[products, n]` from variables `[sites, n]`."""
    values = np.ones((len(products), columns.shape[1]))
    for value, sites in zip(values, products, strict=True):
        for site in sites:
            value *= columns[site]
    return values
