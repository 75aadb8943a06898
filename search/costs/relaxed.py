"""A cost for widths that lie between the choices of their sites, and what one channel more of each adds to it."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from search.costs.polynomial import Polynomials, Terms

Counts = NDArray[np.float64]
"""Of every site of a space, `[sites]`: a number from the least of its choices to the largest."""


class Relaxed:
    """
    One cost of some `Polynomials`, continued between the choices: every variable runs straight from one value of its
    table to the next. A counted cost is linear in the channels of a group, so there it is the exact cost of any number
    of channels; a predicted time bends at the choices.

    What comes out is the metric's sum, in which it is bounded by `Polynomials.ceiling`; of a peak, the largest sum.
    """

    def __init__(self, polynomials: Polynomials, metric: str) -> None:
        self._choices = [np.asarray(choices, dtype=np.float64) for choices in polynomials.choices]
        self._variables = [
            (variable.sites, np.reshape(variable.values, [len(polynomials.choices[site]) for site in variable.sites]))
            for variable in polynomials.variables
        ]
        sums = polynomials.peaks.get(metric) or (polynomials.sums[metric],)
        self._sums = [_Sum(terms, len(self._variables)) for terms in sums]

    def value(self, counts: Counts) -> float:
        values, _ = self._at(counts)
        return max(found.value(values) for found in self._sums)

    def marginal(self, counts: Counts) -> Counts:
        """
        Its derivative by each count, `[sites]`: what one channel more would add, all other counts as they are. Where a
        variable bends, the slope below, since widths fall.
        """
        values, slopes = self._at(counts)
        largest = max(self._sums, key=lambda found: found.value(values))
        return _chained(largest.gradient(values), slopes, len(counts))

    def shares(self, counts: Counts, sites: Collection[int]) -> Counts:
        """
        The cost laid to `sites`, `[sites]`, and what depends on none of them left out: every product of counts in equal
        parts to those it is made of.
        """
        values, slopes = self._at(counts)
        largest = max(self._sums, key=lambda found: found.value(values))
        ours = np.array([not set(names).isdisjoint(sites) for names, _ in self._variables], dtype=bool)
        found = _chained(largest.gradient(values, ours), slopes, len(counts)) * counts
        found[[site for site in range(len(counts)) if site not in set(sites)]] = 0
        return found

    def _at(self, counts: Counts) -> tuple[Counts, list[list[tuple[int, float]]]]:
        """The variables' values, `[variables + 1]`, the last one 1, and of each its slope along its sites."""
        places = [_place(choices, float(count)) for choices, count in zip(self._choices, counts, strict=True)]
        values, slopes = np.ones(len(self._variables) + 1), []
        for at, (sites, table) in enumerate(self._variables):
            values[at], slope = _interpolated(table, [places[site] for site in sites])
            slopes.append(list(zip(sites, slope, strict=True)))
        return values, slopes


class _Sum:
    """Terms as arrays: coefficients `[terms]` and the variables of each `[terms, degree]`, filled up with the last."""

    def __init__(self, terms: Terms, variables: int) -> None:
        degree = max((len(term.variables) for term in terms), default=0)
        self._coefficients = np.array([term.coefficient for term in terms], dtype=np.float64)
        rows = [[*term.variables, *[variables] * (degree - len(term.variables))] for term in terms]
        self._factors = np.array(rows, dtype=np.int64).reshape(len(terms), degree)
        self._size = variables + 1

    def value(self, values: Counts) -> float:
        return float(self._coefficients @ values[self._factors].prod(axis=1))

    def gradient(self, values: Counts, shared: NDArray[np.bool_] | None = None) -> Counts:
        """By every variable, `[variables]`; each term divided by how many `shared` variables it has, where given."""
        of, coefficients = values[self._factors], self._coefficients
        if shared is not None:
            coefficients = coefficients / np.maximum(np.append(shared, False)[self._factors].sum(axis=1), 1)
        found = np.zeros(self._size)
        for place in range(self._factors.shape[1]):
            others = np.delete(of, place, axis=1).prod(axis=1)
            np.add.at(found, self._factors[:, place], coefficients * others)
        return found[:-1]


def _place(choices: Counts, count: float) -> tuple[int, float, float]:
    """The choice below a count, how far it is from there to the next, 0..1, and the distance of the two."""
    if len(choices) == 1:
        return 0, 0.0, 0.0
    below = min(max(int(np.searchsorted(choices, count)) - 1, 0), len(choices) - 2)
    step = float(choices[below + 1] - choices[below])
    return below, (count - float(choices[below])) / step, step


def _interpolated(table: Counts, places: Sequence[tuple[int, float, float]]) -> tuple[float, list[float]]:
    """The value of a table between its entries, and its slope along each of its sites."""
    value, slopes = 0.0, [0.0] * len(places)
    for corner in itertools.product((0, 1), repeat=len(places)):
        if any(step == 0 and end for end, (_, _, step) in zip(corner, places, strict=True)):
            continue
        entry = float(table[tuple(below + end for end, (below, _, _) in zip(corner, places, strict=True))])
        weights = [far if end else 1 - far for end, (_, far, _) in zip(corner, places, strict=True)]
        value += entry * float(np.prod(weights))
        for along, (_, _, step) in enumerate(places):
            if step:
                others = float(np.prod(weights[:along] + weights[along + 1 :]))
                slopes[along] += (1 if corner[along] else -1) * entry * others / step
    return value, slopes


def _chained(gradient: Counts, slopes: Sequence[Sequence[tuple[int, float]]], sites: int) -> Counts:
    found = np.zeros(sites)
    for by, along in zip(gradient, slopes, strict=True):
        for site, slope in along:
            found[site] += by * slope
    return found
