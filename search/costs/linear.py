"""
Questions about costs as a mixed-integer linear programme, for HiGHS.

Column x[site, choice] is 1 where the choice is taken; those of a void site are all 0. A product over several sites is
linear in the columns of a table, one for every combination, whose margins are the x. Where that would take too many
columns (each layer of a DenseNet reads all layers before it) one site h of the product is split off instead: with s the
linear sum of everything that h multiplies, z[c] = x[h, c] * s follows from sum_c z[c] = s and L x <= z <= U x. Both are
exact at whole x, and tight between (disaggregation: Balas, doi.org/10.1137/0606047).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from search.costs.gates import Voids
from search.costs.reduced import Key, Reduced, Sum

Expression = dict[int, float]
"""Coefficient by column; column -1 stands for 1."""

Row = tuple[Expression, float, float]
"""An expression and the bounds it is kept within."""

_TABLE_COLUMNS = 20_000
"""With more combinations than this, sites are split off."""
_ONE = -1


@dataclass(frozen=True, slots=True)
class Found:
    """`positions` among each site's open choices, None when nothing was found; `bound` below every objective."""

    positions: list[int] | None
    bound: float
    infeasible: bool
    complete: bool
    """Whether the search was not cut short."""


class Programme:
    """Columns and rows for the sums of a reduced question; objectives and limits are added by name."""

    def __init__(self, question: Reduced) -> None:
        self._question, self._voids = question, Voids(question.gates, question.open)
        self._upper: list[float] = []
        self._rows: list[Row] = []
        self._x = {
            site: [self._column() for _ in question.open[site]] for site in question.left if not question.shut(site)
        }
        self._binaries = len(self._upper)
        self._tables: dict[tuple[int, ...], NDArray[np.int64]] = {}
        self._splits: dict[tuple[int, frozenset[tuple[Key, int]]], tuple[list[int], float]] = {}
        self._cores: dict[Key, tuple[tuple[int, ...], int]] = {}
        for site, columns in self._x.items():
            self._row(dict.fromkeys(columns, 1.0), 0.0, 0.0, minus=self._active(site))
        self._hubs = self._chosen_hubs()
        self._largest = self._largest_cores()
        self._expressions = {name: self._lowered(self._sum(terms)) for name, terms in question.sums.items()}
        for name, table in question.tables.items():
            self._expressions[name] = self._additive(table)

    @property
    def columns(self) -> int:
        return len(self._upper)

    def expression(self, name: str) -> Expression:
        """The sum or table of this name, exact at whole x."""
        return self._expressions[name]

    def solve(
        self,
        objective: Sequence[tuple[Expression, float]],
        rows: Sequence[Row],
        further: Sequence[Row] = (),
        *,
        seconds: float,
        slack: float = 0.0,
        gap: float = 0.0,
    ) -> Found:
        """
        Minimises the largest of the objectives, each divided by its number. The expression of every row is kept within
        two bounds, and these are `slack` wider, relative to the largest number in the row; of `further` ones without.
        """
        extra = [*(_scaled(row, slack) for row in rows), *further]
        upper = list(self._upper)
        costs: Expression
        if len(objective) == 1:
            expression, unit = objective[0]
            costs = {column: value / unit for column, value in expression.items()}
        else:
            largest = len(upper)
            upper.append(math.inf)
            costs = {largest: 1.0}
            for expression, unit in objective:
                scaled = {column: value / unit for column, value in expression.items()}
                extra.append(({**scaled, largest: -1.0}, -math.inf, 0.0))
        return self._solved(costs, [*self._rows, *extra], upper, seconds, gap)

    def excluded(self, positions: Sequence[int]) -> Row:
        """A row that everything keeps but this one candidate, and its other spellings."""
        x = self.at(positions)
        taken = dict.fromkeys(np.flatnonzero(x).tolist(), 1.0)
        zeros = dict.fromkeys(np.flatnonzero(1 - x).tolist(), -1.0)
        return {**taken, **zeros}, -math.inf, len(taken) - 1.0

    def at(self, positions: Sequence[int]) -> NDArray[np.float64]:
        """The x columns of a candidate."""
        x = np.zeros(self._binaries)
        for site, columns in self._x.items():
            if self._is_active(site, positions):
                x[columns[positions[site]]] = 1
        return x

    def _is_active(self, site: int, positions: Sequence[int]) -> bool:
        gate = self._question.gates.get(site)
        if gate is None:
            return True
        taken = self._question.open[gate.site][positions[gate.site]]
        return taken not in gate.closed and self._is_active(gate.site, positions)

    def _solved(
        self,
        costs: Expression,
        rows: Sequence[Row],
        upper: list[float],
        seconds: float,
        gap: float,
    ) -> Found:
        count = len(upper)
        objective = np.zeros(count)
        for column, value in costs.items():
            if column != _ONE:
                objective[column] = value
        constant = costs.get(_ONE, 0.0)
        at_rows, at_columns, values = [], [], []
        lows, highs = np.empty(len(rows)), np.empty(len(rows))
        for at, (expression, low, high) in enumerate(rows):
            own = expression.get(_ONE, 0.0)
            lows[at], highs[at] = low - own, high - own
            for column, value in expression.items():
                if column != _ONE and value:
                    at_rows.append(at)
                    at_columns.append(column)
                    values.append(value)
        integrality = np.zeros(count)
        integrality[: self._binaries] = 1
        result = milp(
            objective,
            integrality=integrality,
            bounds=Bounds(0.0, np.array(upper)),
            constraints=LinearConstraint(
                csr_array((values, (at_rows, at_columns)), shape=(len(rows), count)), lows, highs
            ),
            options={"time_limit": max(seconds, 0.01), "mip_rel_gap": gap},
        )
        bound = -math.inf if result.mip_dual_bound is None else float(result.mip_dual_bound) + constant
        positions = None
        if result.x is not None:
            positions = [0] * len(self._question.open)
            for site, columns in self._x.items():
                positions[site] = int(np.argmax(result.x[columns]))
                if result.x[columns].sum() < 0.5:  # void
                    positions[site] = len(columns) - 1
        return Found(positions, bound, result.status == 2, result.status in (0, 2))

    def _column(self, upper: float = 1.0) -> int:
        self._upper.append(upper)
        return len(self._upper) - 1

    def _row(self, plus: Expression, low: float, high: float, minus: Expression | None = None) -> None:
        row = dict(plus)
        for column, value in (minus or {}).items():
            row[column] = row.get(column, 0.0) - value
        self._rows.append((row, low, high))

    def _active(self, site: int) -> Expression:
        """1 where a site counts, 0 where it is void."""
        gate = self._voids.gate(site)
        if gate is None:
            return {_ONE: 1.0}
        columns = zip(self._x[gate.site], self._question.open[gate.site], strict=True)
        return {column: 1.0 for column, position in columns if position not in gate.closed}

    def _sum(self, terms: Sum) -> Expression:
        total: dict[int, float] = defaultdict(float)
        split: dict[tuple[int, Key], dict[Key, int]] = defaultdict(dict)
        dense: dict[tuple[int, ...], NDArray[np.float64]] = {}
        for key, coefficient in terms.items():
            core, scale = self._core(key)
            hub = next((hub for hub in self._hubs if hub in core and len(core) > 1), None)
            if hub is not None and not self._joint(hub, key):
                own = tuple(at for at in key if hub in self._question.factors[at].sites)
                rest = tuple(at for at in key if hub not in self._question.factors[at].sites)
                split[hub, own][rest] = split[hub, own].get(rest, 0) + coefficient
                continue
            core = self._largest.get(core, core)
            values = scale * coefficient * self._dense(key, core)
            dense[core] = dense[core] + values if core in dense else values
        for core, values in dense.items():
            for column, value in zip(self._cells(core), values.reshape(-1).tolist(), strict=True):
                total[column] += value
        for (hub, own), rests in split.items():
            columns, unit, largest = self._split(hub, rests)
            weights = math.prod((self._question.factors[at].values.astype(np.float64) for at in own), start=np.ones(1))
            for column, weight in zip(columns, weights.tolist(), strict=True):
                total[column] += unit * largest * weight
        return dict(total)

    def _lowered(self, expression: Expression) -> Expression:
        """The same, with what every choice of a site has in common written as a constant: less is lost to rounding."""
        lowered = dict(expression)
        for site, columns in self._x.items():
            if self._voids.gate(site) is None and all(column in lowered for column in columns):
                common = min(lowered[column] for column in columns)
                lowered[_ONE] = lowered.get(_ONE, 0.0) + common
                for column in columns:
                    lowered[column] -= common
        return lowered

    def _additive(self, table: Sequence[Sequence[float]]) -> Expression:
        total: dict[int, float] = defaultdict(float)
        for site, positions in enumerate(self._question.open):
            if self._question.shut(site):
                continue
            values = np.asarray(table[site], dtype=np.float64)[positions]
            if site in self._x:
                for column, value in zip(self._x[site], values.tolist(), strict=True):
                    total[column] += value
            else:
                for column, one in self._active(site).items():
                    total[column] += one * float(values[0])
        return dict(total)

    def _core(self, key: Key) -> tuple[tuple[int, ...], int]:
        """
        The sites on which a product depends but for being void, rising; and what the product of the others is when it
        is not 0, for they only decide whether another site of the product is void.
        """
        known = self._cores.get(key)
        if known is not None:
            return known
        sites = sorted({site for at in key for site in self._question.factors[at].sites})
        core, scale = [], 1
        for site in sites:
            inner = [other for other in sites if any(gate.site == site for gate in self._voids.above(other))]
            value = self._switch(site, key, inner) if inner and not self._joint(site, key) else None
            if value is None:
                core.append(site)
            else:
                scale *= value
        self._cores[key] = tuple(core), scale
        return self._cores[key]

    def _switch(self, site: int, key: Key, inner: Sequence[int]) -> int | None:
        """The value of a site's part of a product, when it is 0 exactly where `inner` is void and else always this."""
        part = math.prod(
            (self._question.factors[at].values for at in key if site in self._question.factors[at].sites),
            start=np.ones(len(self._question.open[site]), dtype=np.int64),
        )
        voids = {gate.closed for other in inner for gate in self._voids.above(other) if gate.site == site}
        for closed in voids:
            shut = np.array([position in closed for position in self._question.open[site]])
            values = set(part[~shut].tolist())
            if len(values) == 1 and not part[shut].any():
                return int(values.pop())
        return None

    def _joint(self, site: int, key: Key) -> bool:
        factors = (self._question.factors[at] for at in key)
        return any(site in factor.sites and len(factor.sites) > 1 for factor in factors)

    def _dense(self, key: Key, core: tuple[int, ...]) -> NDArray[np.float64]:
        """A product without its coefficient and switches, one axis for each site of its core."""
        values = np.ones([len(self._question.open[site]) for site in core])
        for at in key:
            factor = self._question.factors[at]
            if not set(factor.sites) <= set(core):
                continue  # a switch
            order = np.argsort(factor.sites)
            table = factor.values.transpose(order)
            shape = [len(self._question.open[site]) if site in factor.sites else 1 for site in core]
            values = values * table.reshape(shape)
        return values

    def _chosen_hubs(self) -> list[int]:
        """Sites to be split off, first chosen first, until what is left of the products fits into tables."""
        products = {(self._core(key)[0], key) for terms in self._question.sums.values() for key in terms}
        cores = {core: frozenset(site for site in core if self._joint(site, key)) for core, key in products}
        hubs: list[int] = []
        while True:
            large = {core for core in cores if len(core) > 1}
            if sum(self._cells_of(core) for core in large) <= _TABLE_COLUMNS:
                return hubs
            gain: dict[int, int] = defaultdict(int)
            for core in large:
                for site in core:
                    if site not in cores[core]:
                        gain[site] += self._cells_of(core)
            if not gain:
                return hubs
            hub = max(gain, key=lambda site: (gain[site], -site))
            hubs.append(hub)
            cores = {
                tuple(site for site in core if site != hub or hub in joint): joint for core, joint in cores.items()
            }

    def _cells_of(self, core: tuple[int, ...]) -> int:
        return math.prod(len(self._question.open[site]) for site in core)

    def _largest_cores(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """For the core of every product that gets a table, the widest such core that holds it."""
        cores = set()
        for terms in self._question.sums.values():
            for key in terms:
                core = self._core(key)[0]
                for hub in self._hubs:
                    if hub in core and len(core) > 1 and not self._joint(hub, key):
                        core = tuple(site for site in core if site != hub)
                cores.add(core)
        ordered = sorted((core for core in cores if len(core) > 1), key=lambda core: (-len(core), core))
        holding: dict[int, list[tuple[int, ...]]] = defaultdict(list)
        largest = {}
        for core in ordered:
            wide = next(
                (wide for wide in holding[core[0]] if set(core) <= set(wide) and self._voids_as(core, wide)), core
            )
            largest[core] = wide
            if wide == core:
                for site in core:
                    holding[site].append(core)
        return largest

    def _voids_as(self, core: tuple[int, ...], wide: tuple[int, ...]) -> bool:
        """Whether the table of a wider core is empty exactly where one of `core` would be."""
        inside, around = self._voids.innermost(core), self._voids.innermost(wide)
        return any(self._voids.alike(inner, outer) for inner in inside for outer in around)

    def _cells(self, core: tuple[int, ...]) -> list[int]:
        """A column for every combination of choices, the last site's changing fastest."""
        if not core:
            return [_ONE]
        if len(core) == 1:
            return self._x[core[0]]
        if core not in self._tables:
            self._tables[core] = self._table(core)
        return self._tables[core].reshape(-1).tolist()

    def _table(self, core: tuple[int, ...]) -> NDArray[np.int64]:
        shape = [len(self._question.open[site]) for site in core]
        cells = np.array([self._column() for _ in range(math.prod(shape))], dtype=np.int64).reshape(shape)
        innermost = self._voids.innermost(core)
        for axis, site in enumerate(core):
            same = any(self._voids.alike(site, inner) for inner in innermost)
            for position, column in enumerate(self._x[site]):
                margin = {int(cell): 1.0 for cell in np.take(cells, position, axis=axis).reshape(-1)}
                self._row(margin, 0.0 if same else -math.inf, 0.0, minus={column: 1.0})
        if not innermost:
            every = {int(cell): 1.0 for cell in cells.reshape(-1)}
            active: dict[int, float] = defaultdict(float)
            for site in core:
                for column, value in self._active(site).items():
                    active[column] += value
            self._row(every, 1.0 - len(core), math.inf, minus=active)
        return cells

    def _split(self, hub: int, rests: Mapping[Key, int]) -> tuple[list[int], int, float]:
        """
        Columns z[c] with unit * largest * z[c] = x[hub, c] * s, s the sum of `rests`; each between 0 and x[hub, c].

        The same sum in two costs, but for a factor, is split once.
        """
        unit = math.gcd(*rests.values())
        name = (hub, frozenset((key, coefficient // unit) for key, coefficient in rests.items()))
        if name not in self._splits:
            terms = {key: coefficient // unit for key, coefficient in rests.items()}
            least, most = self._question.limits_of(terms)
            gate = self._voids.gate(hub)
            expression = self._sum(terms)
            inside = all(self._vanishes(key, hub) for key in terms)
            if any(self._voids.gate(site) is not None for key in terms for site in self._core(key)[0]):
                least = 0
            largest = float(max(most, 1))
            columns = [self._column() for _ in self._x[hub]]
            together = dict.fromkeys(columns, largest)
            for z, x in zip(columns, self._x[hub], strict=True):
                self._row({z: 1.0}, -math.inf, 0.0, minus={x: 1.0})
                if least:
                    self._row({z: largest}, 0.0, math.inf, minus={x: float(least)})
            if gate is None or inside:
                self._row(together, 0.0, 0.0, minus=expression)
            else:
                self._row(together, -math.inf, 0.0, minus=expression)
                slack = {column: most * value for column, value in self._active(hub).items()}
                slack[_ONE] = slack.get(_ONE, 0.0) - most
                self._row(together, 0.0, math.inf, minus=_plus(expression, slack))
            self._splits[name] = (columns, largest)
        columns, largest = self._splits[name]
        return columns, unit, largest

    def _vanishes(self, key: Key, hub: int) -> bool:
        """Whether a product is 0 wherever `hub` is void."""
        return any(self._voids.gate(hub) in self._voids.above(site) for site in self._core(key)[0])


def _plus(one: Expression, other: Expression) -> Expression:
    total = dict(one)
    for column, value in other.items():
        total[column] = total.get(column, 0.0) + value
    return total


def _scaled(row: Row, slack: float) -> Row:
    expression, low, high = row
    constant = expression.get(_ONE, 0.0)
    coefficients = {column: value for column, value in expression.items() if column != _ONE}
    low, high = low - constant, high - constant
    unit = max([abs(value) for value in (*coefficients.values(), low, high) if math.isfinite(value)]) or 1.0
    return {column: value / unit for column, value in coefficients.items()}, low / unit - slack, high / unit + slack
