"""What can be said of times within seconds, before a job is taken on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from search.costs.polynomial import Terms, total
from search.errors import Unsupported, UserError
from search.latency.fit import BlockCosts
from search.latency.measure import Shape, measured
from search.latency.model import Counted, Timed
from search.latency.table import Grafting, Measured, Row, Table
from search.limits import Measurement

LENIENCE = 1.25
"""So many times faster than it was measured the least student is taken to be: what is refused is far out of reach."""


class Surveyed(Counted, Grafting, Protocol):
    """A survey."""


def bracket(found: Surveyed, shape: Shape, measurement: Measurement) -> Table:
    """
    The teacher and the student with the least of every site, measured in turns on this machine; two exports and a
    second of running.

    Raises as `search.latency.measure.warm` does.
    """
    ends = [found.space.full(), found.space.least()]
    readings = measured([found.graft(candidate) for candidate in ends], shape, measurement)
    return Table(
        space=found.space.key,
        measurement=measurement,
        networks=tuple(
            Measured(choices=candidate.as_dict(), latency=latency)
            for candidate, latency in zip(ends, readings, strict=True)
        ),
        rows=tuple(
            Row(block="", network=number, nanoseconds=latency.nanoseconds) for number, latency in enumerate(readings)
        ),
    )


class Unblocked:
    """A survey whose costs are not told apart by block: times are learned for the network as a whole."""

    def __init__(self, found: Counted) -> None:
        self._found = found
        self.space, self.polynomials = found.space, found.polynomials
        self.costs_of, self.bounds, self.cost = found.costs_of, found.bounds, found.cost

    @property
    def block_costs(self) -> BlockCosts:
        macs: Terms = total(*(macs for macs, _ in self._found.block_costs.values()))
        return {"": (macs, total(*(elements for _, elements in self._found.block_costs.values())))}


def quickly(found: Surveyed, shape: Shape, measurements: Mapping[str, Measurement]) -> Timed:
    """
    Times between the teacher's, as measured, and `LENIENCE` less than the least student's: a guess in between.

    `timings` of the result have no error on record, because nothing was measured to tell it by.

    Raises:
        UserError: this machine lacks what a measurement asks for; the pointer is its field in the budget.
        Unsupported: the network cannot be written for the runtime.
    """
    tables = {}
    for metric, measurement in measurements.items():
        try:
            tables[metric] = _lenient(bracket(found, shape, measurement))
        except UserError as error:
            raise (error if isinstance(error, Unsupported) else error.under(f"/budget/{metric}")) from None
    return Timed(Unblocked(found), tables)


def _lenient(table: Table) -> Table:
    teacher, least = table.networks
    faster = round(least.latency.nanoseconds / LENIENCE)
    return table.model_copy(
        update={
            "networks": (
                teacher,
                least.model_copy(update={"latency": least.latency.model_copy(update={"nanoseconds": faster})}),
            ),
            "rows": (table.rows[0], table.rows[1].model_copy(update={"nanoseconds": float(faster)})),
        }
    )
