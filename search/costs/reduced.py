"""
What is left of a question about costs once everything certain has been decided.

A choice that costs no less than another in every sum that matters, whatever is chosen elsewhere, need not be looked
at. Sites with one choice left are folded into the coefficients, which makes more choices comparable, and so on. All of
it is whole numbers: nothing is left out by rounding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from search.costs.gates import Gate
from search.costs.polynomial import Polynomials, Terms

Key = tuple[int, ...]
"""A product, by the numbers of its variables, rising; the empty one is 1."""
Sum = dict[Key, int]
"""Coefficient by product."""
Table = Sequence[Sequence[float]]
"""A number for every choice of every site; they add up over the sites that are not void."""


@dataclass
class Factor:
    """A variable over the choices still open: one axis for each of `sites`."""

    sites: tuple[int, ...]
    values: NDArray[np.int64]


@dataclass
class Reduced:
    """
    Sums over the sites that are still open.

    `open[site]` are positions among the site's choices, rising. `sums` holds whatever sums are asked about, under any
    names; `tables` further numbers for each choice. `signs` says of both whether they shall be small (1) or large (-1).
    """

    choices: Sequence[tuple[int, ...]]
    gates: Mapping[int, Gate]
    factors: list[Factor]
    sums: dict[str, Sum]
    tables: dict[str, Table]
    signs: Mapping[str, int]
    open: list[list[int]] = field(default_factory=list)

    @property
    def left(self) -> list[int]:
        """The sites that still have a choice."""
        return [site for site, positions in enumerate(self.open) if len(positions) > 1]

    @property
    def size(self) -> int:
        """How many combinations are left."""
        return math.prod(len(positions) for positions in self.open)

    def shut(self, site: int) -> bool:
        """Whether a site is void whatever is chosen at the open ones."""
        gate = self.gates.get(site)
        return gate is not None and (set(self.open[gate.site]) <= gate.closed or self.shut(gate.site))

    def limits_of(self, terms: Sum) -> tuple[int, int]:
        """Two numbers between which a sum stays; exact when it has one term or rises with every choice."""
        least = most = 0
        for key, coefficient in terms.items():
            least += coefficient * math.prod(int(self.factors[at].values.min()) for at in key)
            most += coefficient * math.prod(int(self.factors[at].values.max()) for at in key)
        return least, most

    def rows(self) -> NDArray[np.int64]:
        """Every combination left, `[size, sites]`, as choices."""
        axes = [np.asarray(self.choices[site])[positions] for site, positions in enumerate(self.open)]
        count = self.size
        rows = np.empty((count, len(axes)), dtype=np.int64)
        inner = count
        for site, axis in enumerate(axes):
            inner //= len(axis)
            rows[:, site] = np.tile(np.repeat(axis, inner), count // (inner * len(axis)))
        return rows

    def settle(self) -> None:
        """Leaves out, until nothing changes, every choice that another one makes needless."""
        self._fold()
        while self._without_needless():
            self._fold()

    def _fold(self) -> None:
        """Moves the values of sites with one choice left from the variables to the coefficients."""
        folded: dict[int, tuple[int, int | None]] = {}
        for at in range(len(self.factors)):
            factor = self.factors[at]
            staying = [axis for axis, site in enumerate(factor.sites) if len(self.open[site]) > 1]
            if len(staying) == len(factor.sites):
                continue
            if staying:
                sites = tuple(factor.sites[axis] for axis in staying)
                self.factors[at] = Factor(sites, factor.values.reshape([len(self.open[site]) for site in sites]))
            else:
                folded[at] = (int(factor.values.reshape(-1)[0]), None)
        if folded:
            for name, terms in self.sums.items():
                self.sums[name] = _gathered(
                    (
                        tuple(at for at in key if at not in folded),
                        coefficient * math.prod(folded[at][0] for at in key if at in folded),
                    )
                    for key, coefficient in terms.items()
                )

    def _without_needless(self) -> bool:
        touching = self._touching()
        changed = False
        for site in self.left:
            columns = [self._effect(site, sign, group) for sign, group in touching[site]]
            if not self.shut(site):
                columns += [column for name, table in self.tables.items() for column in self._added(site, name, table)]
            kept = _undominated(np.concatenate(columns, axis=1) if columns else np.zeros((len(self.open[site]), 1)))
            if len(kept) < len(self.open[site]):
                self._keep(site, kept)
                changed = True
        return changed

    def _added(self, site: int, name: str, table: Table) -> list[NDArray[np.float64]]:
        """What the choices of a site add to a table, each `[choices, 1]`; more than one where others become void."""
        sign = self.signs[name]
        own = [sign * np.asarray(table[site], dtype=np.float64)[self.open[site], None]]
        inner = [other for other in range(len(self.open)) if self._is_within(other, site)]
        within = [sign * np.asarray(table[other], dtype=np.float64)[self.open[other]] for other in inner]
        least = sum(min(0.0, float(numbers.min())) for numbers in within)
        most = sum(max(0.0, float(numbers.max())) for numbers in within)
        closed = {position for other in inner for position in self._closing(other, site)}
        counts = np.array([[float(position not in closed)] for position in self.open[site]])
        if least < 0:  # to void them is no surely better choice
            own.append(-counts)
        if most > 0:
            own.append(counts)
        return own

    def _is_within(self, inner: int, site: int) -> bool:
        gate = self.gates.get(inner)
        return gate is not None and (gate.site == site or self._is_within(gate.site, site))

    def _closing(self, inner: int, site: int) -> frozenset[int]:
        """The positions of `site` that make `inner`, which is within it, void."""
        gate = self.gates[inner]
        return gate.closed if gate.site == site else self._closing(gate.site, site)

    def _keep(self, site: int, kept: list[int]) -> None:
        self.open[site] = [self.open[site][at] for at in kept]
        for factor in self.factors:
            if site in factor.sites:
                factor.values = np.take(factor.values, kept, axis=factor.sites.index(site))

    def _touching(self) -> dict[int, list[tuple[int, list[tuple[Key, int]]]]]:
        """
        For every site the terms it occurs in, with their sum's sign; gathered where the rest of the product is equal.

        The rest is never negative, so a choice that is better in every gathering is better altogether.
        """
        gathered: dict[int, dict[tuple[str, Key], list[tuple[Key, int]]]] = defaultdict(lambda: defaultdict(list))
        for name, terms in self.sums.items():
            for key, coefficient in terms.items():
                for site in {site for at in key for site in self.factors[at].sites}:
                    own = tuple(at for at in key if site in self.factors[at].sites)
                    rest = tuple(at for at in key if site not in self.factors[at].sites)
                    joint = tuple(at for at in own if len(self.factors[at].sites) > 1)
                    gathered[site][name, (*rest, -1, *joint)].append((own, coefficient))
        return defaultdict(
            list,
            {
                site: [(self.signs[name], group) for (name, _), group in groups.items()]
                for site, groups in gathered.items()
            },
        )

    def _effect(self, site: int, sign: int, group: list[tuple[Key, int]]) -> NDArray[np.float64]:
        """What the choices of a site contribute to terms that share everything else, `[choices, others' choices]`."""
        total = np.zeros((1, 1), dtype=np.int64)
        for own, coefficient in group:
            values = np.full((len(self.open[site]), 1), sign * coefficient, dtype=np.int64)
            for at in own:
                factor = self.factors[at]
                table = np.moveaxis(factor.values, factor.sites.index(site), 0).reshape(len(self.open[site]), -1)
                values = (values[:, :, None] * table[:, None, :]).reshape(len(self.open[site]), -1)
            total = total + values
        return total.astype(np.float64)  # exact: no cost reaches 2**53


def reduced(
    polynomials: Polynomials,
    gates: Mapping[int, Gate],
    sums: Mapping[str, Terms],
    signs: Mapping[str, int],
    tables: Mapping[str, Table] | None = None,
) -> Reduced:
    """The question about `sums` and `tables` with everything certain decided; `signs` as in `Reduced`."""
    shape = [len(choices) for choices in polynomials.choices]
    result = Reduced(
        polynomials.choices,
        gates,
        [
            Factor(
                variable.sites, np.asarray(variable.values, dtype=np.int64).reshape([shape[s] for s in variable.sites])
            )
            for variable in polynomials.variables
        ],
        {
            name: _gathered((tuple(sorted(term.variables)), term.coefficient) for term in terms)
            for name, terms in sums.items()
        },
        dict(tables or {}),
        signs,
        [list(range(count)) for count in shape],
    )
    result.settle()
    return result


def undominated(sums: Sequence[Terms]) -> list[Terms]:
    """The sums of which none is surely at most another: their largest is the largest of all."""
    products = sorted({term.variables for terms in sums for term in terms})
    column = {key: at for at, key in enumerate(products)}
    matrix = np.zeros((len(sums), len(products)))
    for row, terms in enumerate(sums):
        for term in terms:
            matrix[row, column[term.variables]] += term.coefficient
    kept: list[int] = []
    for row in np.argsort(-matrix.sum(axis=1), kind="stable"):
        if not kept or not (matrix[row] <= matrix[kept]).all(axis=1).any():
            kept.append(int(row))
    return [sums[row] for row in sorted(kept)]


def _undominated(columns: NDArray[np.float64]) -> list[int]:
    """Rows of which no other is at most as large everywhere; of equal ones the last."""
    kept: list[int] = []
    for row in range(len(columns) - 1, -1, -1):
        rivals = [other for other in range(len(columns)) if other != row]
        worse = False
        for other in rivals:
            if (columns[other] <= columns[row]).all() and (other > row or (columns[other] < columns[row]).any()):
                worse = True
                break
        if not worse:
            kept.append(row)
    return kept[::-1]


def _gathered(pairs: Iterable[tuple[Key, int]]) -> Sum:
    result: dict[Key, int] = defaultdict(int)
    for key, coefficient in pairs:
        result[key] += coefficient
    return {key: coefficient for key, coefficient in result.items() if coefficient}
