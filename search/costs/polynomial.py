"""
Costs in closed form.

A cost is a sum of terms, each a whole coefficient times a product of variables: one variable per site, the number of
units kept for a width and 0 or 1 for a removal. Nothing is rounded: all arithmetic is on 64-bit integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_ROWS = 4096
"""Candidates evaluated at once; their terms then stay in the processor's cache."""


@dataclass(frozen=True, slots=True)
class Term:
    """`coefficient` times the product of the variables at `sites`; a square names its site twice."""

    coefficient: int
    sites: tuple[int, ...] = ()


Terms = tuple[Term, ...]


def total(*parts: Iterable[Term]) -> Terms:
    """The sum, with equal products gathered and zeros left out; in a fixed order."""
    sums: dict[tuple[int, ...], int] = {}
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
    """Several costs over the same variables. Exact below 2**63, which no network comes near."""

    terms: Mapping[str, Terms]

    @cached_property
    def _products(self) -> tuple[list[tuple[int, ...]], NDArray[np.int64]]:
        """Every product of variables that occurs, and its coefficients `[metrics, products]`."""
        products = sorted({term.sites for terms in self.terms.values() for term in terms})
        at = {sites: column for column, sites in enumerate(products)}
        coefficients = np.zeros((len(self.terms), len(products)), dtype=np.int64)
        for row, terms in enumerate(self.terms.values()):
            for term in terms:
                coefficients[row, at[term.sites]] = term.coefficient
        return products, coefficients

    def __call__(self, variables: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
        """`{metric: [n]}` for variables `[n, sites]`."""
        products, coefficients = self._products
        costs = np.empty((len(self.terms), len(variables)), dtype=np.int64)
        room = np.empty((len(products), min(_ROWS, max(1, len(variables)))), dtype=np.int64)
        for start in range(0, len(variables), _ROWS):
            columns = np.ascontiguousarray(variables[start : start + _ROWS].T)
            values = room[:, : columns.shape[1]]
            for value, sites in zip(values, products, strict=True):
                _multiply(columns, sites, value)
            np.matmul(coefficients, values, out=costs[:, start : start + _ROWS])
        return dict(zip(self.terms, costs, strict=True))


def _multiply(columns: NDArray[np.int64], sites: Sequence[int], out: NDArray[np.int64]) -> None:
    if not sites:
        out[:] = 1
    elif len(sites) == 1:
        out[:] = columns[sites[0]]
    else:
        np.multiply(columns[sites[0]], columns[sites[1]], out=out)
        for site in sites[2:]:
            out *= columns[site]
