"""What can be said of times within seconds, before a job is taken on."""

from __future__ import annotations

from typing import Protocol

from search.costs.polynomial import Terms, total
from search.latency.fit import BlockCosts
from search.latency.measure import Shape, measured
from search.latency.model import Counted, Timed
from search.latency.table import Grafting, Measured, Row, Table
from search.spec import Measurement

LENIENCE = 1.25
"""A limit is refused before anything is searched only when the least student is that many times over it."""


class Surveyed(Counted, Grafting, Protocol):
    """A survey."""


def bracket(found: Surveyed, shape: Shape, measurement: Measurement) -> Table:
    """
    The teacher and the student with the least of every site, measured in turns on this machine.

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
        self.costs_of, self.bounds = found.costs_of, found.bounds

    @property
    def block_costs(self) -> BlockCosts:
        macs: Terms = total(*(macs for macs, _ in self._found.block_costs.values()))
        return {"": (macs, total(*(elements for _, elements in self._found.block_costs.values())))}


def quickly(found: Surveyed, shape: Shape, measurements: dict[str, Measurement]) -> Timed:
    """
    Times between those of the teacher and of the least student: right at the ends, a guess in between.

    `timings` of the result have no error on record, because nothing was measured to tell it by.
    """
    return Timed(Unblocked(found), {metric: bracket(found, shape, one) for metric, one in measurements.items()})
