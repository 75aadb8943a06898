"""
From a table of measured blocks to latency in closed form.

The time of a block is taken for so much a multiplication, more for those of its widest layers, so much an element that
it writes, and so much for being there at all; none of it negative. So a prediction rises with every width as counted
costs do, and can be planned exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from search.costs.polynomial import Polynomials, Term, Terms, Variable, total
from search.latency.table import Table
from search.space import Space

BlockCosts = Mapping[str, tuple[Terms, Terms]]
"""By block the terms of its macs and of the elements it writes; "" is what belongs to no block."""

_HELD_OUT = 4
"""At most so many of the networks say how good a prediction from the others is."""
_LANES = (1, 8, 16, 32)
"""Channels that a runtime may handle at once; widths between their multiples take the time of the next."""
_BENDS = (0.2, 0.4, 0.6)
_LARGEST = 10**13
"""About what the latency of the teacher comes to in parts of a nanosecond: fine enough, and far from 2**53."""
_TEACHER_WEIGHT = 3.0
"""The teacher is what relative limits are relative to: its row counts as that many."""


@dataclass(frozen=True, slots=True)
class Timing:
    """
    A latency in closed form, over the variables of the survey with `extra` ones behind them.

    `terms` come to nanoseconds times `fraction`. `lane` is the number of channels that the runtime was found to handle
    at once. `held_out` are pairs of predicted and measured nanoseconds, the prediction made without having learned from
    that network.
    """

    extra: tuple[Variable, ...]
    terms: Terms
    fraction: int
    lane: int
    held_out: tuple[tuple[int, int], ...]

    @property
    def error(self) -> float | None:
        """The median relative error of the predictions of `held_out`; None when the space was too small for any."""
        errors = [abs(predicted / measured - 1) for predicted, measured in self.held_out]
        return float(np.median(errors)) if errors else None


def timing(table: Table, space: Space, polynomials: Polynomials, block_costs: BlockCosts) -> Timing:
    """The latency of students of `space`, learned from networks of the same space."""
    count = len(table.networks)
    learned = range(count - min(_HELD_OUT, (count - 1) // 3))
    features = [_Features(space, polynomials, block_costs, table, lane) for lane in _LANES]
    best = min(features, key=lambda one: one.residual(learned))
    predicted = best.predicted(best.coefficients(learned))
    pairs = tuple((round(predicted[at]), round(best.measured[at])) for at in range(len(learned), count))
    return replace(best.timing(best.coefficients(range(count))), held_out=pairs)


class _Features:
    """What the blocks of the table's networks consist of, with channels counted in whole lanes."""

    def __init__(
        self, space: Space, polynomials: Polynomials, block_costs: BlockCosts, table: Table, lane: int
    ) -> None:
        self._lane = lane
        variables = list(polynomials.variables)
        self._base = len(variables)
        padded = _Padded(space, variables, lane)
        present = _Present(space, variables)
        bent = _Bent(space, variables)
        self._terms: dict[str, tuple[Terms, ...]] = {}
        for block, (macs, elements) in {"": ((), ()), **block_costs}.items():
            work = padded(macs)
            bends = (bent(work, share) for share in _BENDS)
            self._terms[block] = (work, padded(elements), present(block), *bends)
        self._variables = tuple(variables)
        rows = space.array([space.candidate(network.choices) for network in table.networks])
        flat = {f"{block}\n{part}": terms for block, parts in self._terms.items() for part, terms in enumerate(parts)}
        values = Polynomials([site.choices for site in space.sites], variables, flat)(rows)
        self._values: dict[str, NDArray[np.float64]] = {
            block: np.stack([values[f"{block}\n{part}"] for part in range(len(parts))], axis=1).astype(np.float64)
            for block, parts in self._terms.items()
        }
        self.measured = np.array([network.latency.nanoseconds for network in table.networks], dtype=np.float64)
        self._times = {block: np.zeros(len(table.networks)) for block in self._terms}
        for row in table.rows:
            self._times[row.block if row.block in self._times else ""][row.network] += row.nanoseconds

    def coefficients(self, networks: Sequence[int]) -> dict[str, NDArray[np.float64]]:
        """Nanoseconds a mac, an element and a presence, by block; least squares of errors relative to the networks."""
        at = np.asarray(networks)
        weights = 1 / self.measured[at]
        weights[at == 0] *= _TEACHER_WEIGHT
        found = {}
        for block, values in self._values.items():
            scale = np.maximum(values.max(axis=0), 1)
            solution, _ = nnls(values[at] / scale * weights[:, None], self._times[block][at] * weights)
            found[block] = solution / scale
        return found

    def predicted(self, coefficients: Mapping[str, NDArray[np.float64]]) -> NDArray[np.float64]:
        """Nanoseconds of every network of the table."""
        times = [self._values[block] @ found for block, found in coefficients.items()]
        whole: NDArray[np.float64] = np.sum(times, axis=0)
        return whole

    def residual(self, networks: Sequence[int]) -> float:
        """Mean square of the relative errors for the networks themselves."""
        at = np.asarray(networks)
        return float(np.mean((self.predicted(self.coefficients(networks))[at] / self.measured[at] - 1) ** 2))

    def timing(self, coefficients: Mapping[str, NDArray[np.float64]]) -> Timing:
        fraction = 10 ** max(0, round(np.log10(_LARGEST / self.measured.max())))
        terms = total(
            Term(round(term.coefficient * found * fraction), term.variables)
            for block, parts in self._terms.items()
            for terms, found in zip(parts, coefficients[block], strict=True)
            for term in terms
        )
        used = sorted({at for term in terms for at in term.variables if at >= self._base})
        moved = {at: self._base + place for place, at in enumerate(used)}
        return Timing(
            extra=tuple(self._variables[at] for at in used),
            terms=tuple(Term(term.coefficient, tuple(moved.get(at, at) for at in term.variables)) for term in terms),
            fraction=fraction,
            lane=self._lane,
            held_out=(),
        )


class _Padded:
    """Terms with every number of channels raised to whole lanes; new variables are appended to `variables`."""

    def __init__(self, space: Space, variables: list[Variable], lane: int) -> None:
        self._space, self._variables, self._lane = space, variables, lane
        self._of: dict[int, int] = {}

    def __call__(self, terms: Terms) -> Terms:
        if self._lane == 1:
            return terms
        return total(Term(term.coefficient, tuple(sorted(map(self._raised, term.variables)))) for term in terms)

    def _raised(self, at: int) -> int:
        if at not in self._of:
            self._of[at] = self._append(at)
        return self._of[at]

    def _append(self, at: int) -> int:
        variable = self._variables[at]
        site = self._space.sites[variable.sites[0]]
        unit = site.full // variable.values[-1] if variable.values[-1] else 0
        counts_channels = (
            len(variable.sites) == 1
            and site.kind == "width"
            and tuple(value * unit for value in variable.values) == site.choices
        )
        if not counts_channels:
            return at
        values = tuple(-(-(-(-choice // self._lane) * self._lane) // unit) for choice in site.choices)
        if values == variable.values:
            return at
        self._variables.append(Variable(variable.sites, values))
        return len(self._variables) - 1


class _Bent:
    """
    Of every product of widths, what goes beyond a share of its own largest value; 0 below.

    A layer whose weights no longer fit a cache takes more time for each multiplication than a narrower one. New
    variables are appended to `variables`.
    """

    def __init__(self, space: Space, variables: list[Variable]) -> None:
        self._space, self._variables = space, variables

    def __call__(self, terms: Terms, share: float) -> Terms:
        return total(*([bent] for term in terms if (bent := self._bent(term, share)) is not None))

    def _bent(self, term: Term, share: float) -> Term | None:
        widths = [at for at in term.variables if self._of_widths(self._variables[at])]
        sites = tuple(sorted({site for at in widths for site in self._variables[at].sites}))
        if not 1 <= len(sites) <= 2:
            return None
        values = self._products(term.coefficient, widths, sites)
        bend = int(share * values[-1])
        self._variables.append(Variable(sites, tuple(max(0, value - bend) for value in values)))
        rest = [at for at in term.variables if at not in widths]
        return Term(1, tuple(sorted([*rest, len(self._variables) - 1])))

    def _of_widths(self, variable: Variable) -> bool:
        return all(self._space.sites[site].kind == "width" for site in variable.sites)

    def _products(self, coefficient: int, variables: Sequence[int], sites: tuple[int, ...]) -> list[int]:
        """Of the term for every combination of choices at `sites`, the last one's changing fastest."""
        choices = [site.choices for site in self._space.sites]
        rows = np.array([[choice[-1] for choice in choices]] * math.prod(len(choices[site]) for site in sites))
        rows[:, sites] = list(itertools.product(*(choices[site] for site in sites)))
        found = Polynomials(choices, self._variables, {"": (Term(coefficient, tuple(variables)),)})(rows)[""]
        return [int(value) for value in found]


class _Present:
    """The terms that are 1 where a block stands and 0 where it is removed."""

    def __init__(self, space: Space, variables: list[Variable]) -> None:
        self._space, self._variables = space, variables

    def __call__(self, block: str) -> Terms:
        for at, site in enumerate(self._space.sites):
            if block and site.kind == "removal" and (block == site.block or block.startswith(f"{site.block}.")):
                kept = Variable((at,), tuple(int(choice != 0) for choice in site.choices))
                if kept not in self._variables:
                    self._variables.append(kept)
                return (Term(1, (self._variables.index(kept),)),)
        return (Term(1),)
