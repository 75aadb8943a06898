"""
The table that latency is predicted from: candidates of a space built, measured as a whole and block by block.

Each network tells the time of every block at once, so a dozen of them, from the least to the teacher, say of each block
how its time follows from the choices in and around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Protocol

import numpy as np
from torch import nn

from search.latency.machine import environment
from search.latency.measure import Shape, warm
from search.latency.reading import Reading, bursts, comparison
from search.limits import Measurement
from search.part import Part
from search.space import Candidate, Space

NETWORKS = 13
_SCALES = (0.75, 0.5, 0.25)
_AROUND = (0.3, 0.9, 0.5, 0.7)
"""Shares of the teacher's widths, uniform and at random around."""


class Row(Part):
    """One block of one network: its share of the network's latency."""

    block: str
    """Its name; empty for what belongs to no block."""
    network: int
    """Which of the table's networks it stood in."""
    nanoseconds: float


class Measured(Part):
    """One network as it was measured."""

    choices: Mapping[str, int]
    latency: Reading


class Table(Part):
    """What was measured of a space: the teacher first, the last networks at random."""

    space: str
    """The space's key."""
    measurement: Measurement
    networks: tuple[Measured, ...]
    rows: tuple[Row, ...]

    @property
    def teacher(self) -> Reading:
        return self.networks[0].latency


class Grafting(Protocol):
    """What is asked of a survey here."""

    @property
    def space(self) -> Space: ...

    def graft(self, candidate: Candidate) -> nn.Module: ...


def tabulate(
    found: Grafting, blocks: Collection[str], shape: Shape, measurement: Measurement, *, networks: int = NETWORKS
) -> Iterator[int | Table]:
    """
    Measures students of `found`, which take images `[n, *shape]`. Yields how many are done, and at the end the table.

    Every network takes turns with one and the same other, the teacher at half its widths, and its latency is what it
    took relative to that one: so a machine that is slower for a while makes no row slower than another.

    Raises as `search.latency.measure.warm` does.
    """
    chosen = spread(found.space, networks)
    measured: list[tuple[float, int, int, Mapping[str, float]]] = []
    references = []
    with warm(found.graft(uniform(found.space, 0.5)), shape, measurement) as reference:
        for number, candidate in enumerate(chosen):
            with warm(found.graft(candidate), shape, measurement) as network:
                turns = bursts([network.run, reference.run])
                profile = network.profile(blocks)
            pair = comparison(turns[0], turns[1], measurement.statistic, {})
            references.append(pair.second.nanoseconds)
            measured.append((pair.ratio, pair.first.spread, pair.first.samples, profile))
            yield number + 1
    unit = float(np.median(references))
    where = environment(measurement)
    yield Table(
        space=found.space.key,
        measurement=measurement,
        networks=tuple(
            Measured(
                choices=candidate.as_dict(),
                latency=Reading(
                    nanoseconds=max(1, round(unit * ratio)), spread=iqr, samples=samples, environment=where
                ),
            )
            for candidate, (ratio, iqr, samples, _) in zip(chosen, measured, strict=True)
        ),
        rows=tuple(
            Row(block=block, network=number, nanoseconds=unit * ratio * spent / sum(profile.values()))
            for number, (ratio, _, _, profile) in enumerate(measured)
            for block, spent in profile.items()
        ),
    )


def spread(space: Space, count: int) -> list[Candidate]:
    """
    At most `count` different candidates, the same for equal spaces: the teacher, the least of every site, uniform
    widths, and at random from narrow to wide.
    """
    rng = np.random.default_rng(0)
    chosen = [
        space.full(),
        space.least(),
        *(uniform(space, scale) for scale in _SCALES),
        *(_around(space, _AROUND[number % len(_AROUND)], rng) for number in range(4 * count)),
    ]
    return list({candidate.key: candidate for candidate in chosen}.values())[:count]


def uniform(space: Space, scale: float) -> Candidate:
    """Every width at about `scale` of the teacher's, everything else as the teacher has it."""
    return space.candidate(
        {
            site.name: min(site.choices, key=lambda choice: abs(choice - scale * site.full))
            if site.kind == "width"
            else site.full
            for site in space.sites
        }
    )


def _around(space: Space, scale: float, rng: np.random.Generator) -> Candidate:
    """Widths at random around a share of the teacher's; other sites as the teacher has them three times in four."""
    choices = {}
    for site in space.sites:
        if site.kind == "width":
            wanted = rng.uniform(0.5, 1.5) * scale * site.full
            choices[site.name] = min(site.choices, key=lambda choice: abs(choice - wanted))
        else:
            choices[site.name] = site.full if rng.random() < 0.75 else int(rng.choice(site.choices))
    return space.candidate(choices)
