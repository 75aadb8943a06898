"""
Which sites make which others void.

A block that is removed makes the widths within it void: they change nothing. This is read off the costs themselves:
whatever term knows the inner site vanishes with the outer one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.costs.polynomial import Polynomials


@dataclass(frozen=True, slots=True)
class Gate:
    """A site is void while `site` takes one of the choices at these positions."""

    site: int
    closed: frozenset[int]


def gates_of(polynomials: Polynomials) -> dict[int, Gate]:
    """
    For every site that another one can make void, that other: all terms that know the site vanish with it.

    Of several the innermost, so that following gates leads from a block outwards.
    """
    zeros = [_zeros(polynomials, at) for at in range(len(polynomials.variables))]
    common: dict[int, set[tuple[int, int]]] = {}
    every = [*polynomials.sums.values(), *(terms for peak in polynomials.peaks.values() for terms in peak)]
    for terms in every:
        for term in terms:
            vanishing = {zero for at in term.variables for zero in zeros[at]}
            for site in {site for at in term.variables for site in polynomials.variables[at].sites}:
                known = common.get(site)
                common[site] = set(vanishing) if known is None else known & vanishing
    gates: dict[int, Gate] = {}
    for site in sorted(common):
        outer: dict[int, set[int]] = defaultdict(set)
        for other, position in common[site]:
            if other != site:
                outer[other].add(position)
        # who is void in the most cases himself is the innermost
        for other in sorted(outer, key=lambda other: (-len({at for at, _ in common[other]}), other)):
            if not _leads(gates, other, site):
                gates[site] = Gate(other, frozenset(outer[other]))
                break
    return gates


def active(gates: Mapping[int, Gate], choices: Sequence[tuple[int, ...]], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`[n, sites]`: whether a site is not void; for candidates `[n, sites]`, given the choices of every site."""
    found = np.ones(rows.shape, dtype=bool)
    done = {site for site in range(rows.shape[1]) if site not in gates}

    def look(site: int) -> None:
        if site in done:
            return
        gate = gates[site]
        look(gate.site)
        closed = [choices[gate.site][at] for at in gate.closed]
        found[:, site] = found[:, gate.site] & ~np.isin(rows[:, gate.site], closed)
        done.add(site)

    for site in range(rows.shape[1]):
        look(site)
    return found


def _leads(gates: Mapping[int, Gate], start: int, goal: int) -> bool:
    while start in gates and start != goal:
        start = gates[start].site
    return start == goal


def _zeros(polynomials: Polynomials, at: int) -> set[tuple[int, int]]:
    """The (site, position) that make a variable zero."""
    variable = polynomials.variables[at]
    values = np.asarray(variable.values).reshape([len(polynomials.choices[site]) for site in variable.sites])
    found = set()
    for axis, site in enumerate(variable.sites):
        others = tuple(other for other in range(values.ndim) if other != axis)
        found |= {(site, int(position)) for position in np.flatnonzero(~values.any(axis=others))}
    return found


class Voids:
    """The gates among sites of which some have only the choices at the positions `left`."""

    def __init__(self, gates: Mapping[int, Gate], left: Sequence[Sequence[int]]) -> None:
        self._gates, self._open = gates, left

    def gate(self, site: int) -> Gate | None:
        """The innermost gate of a site that may still open or close; the site must not be void already."""
        gate = self._gates.get(site)
        if gate is None:
            return None
        positions = set(self._open[gate.site])
        return gate if positions & gate.closed and positions - gate.closed else self.gate(gate.site)

    def above(self, site: int) -> list[Gate]:
        """All such gates of a site, the innermost first."""
        gate = self.gate(site)
        return [] if gate is None else [gate, *self.above(gate.site)]

    def alike(self, one: int, other: int) -> bool:
        """Whether two sites are void in the same cases."""
        return self.gate(one) == self.gate(other)

    def innermost(self, sites: Sequence[int]) -> list[int]:
        """Those of the sites that are void whenever any of them is."""
        return [site for site in sites if all(self._no_more(other, site) for other in sites)]

    def _no_more(self, outer: int, inner: int) -> bool:
        """Whether `outer` is void in no case in which `inner` is not."""
        gate = self.gate(outer)
        return gate is None or gate in self.above(inner)
