from __future__ import annotations

import itertools

import numpy as np
import pytest

from search.budget import Budget
from search.projection import Projector
from search.starts import starts, within
from tests.search.chains import Chain

CHAIN = Chain()
LEVELS = (Budget({"macs": 600}), Budget({"macs": 300}))
HARMS = [[3.0, 2.0, 1.0, 0.0], [1.0, 0.0], [0.9, 0.5, 0.2, 0.0], [2.0, 0.7, 0.1, 0.0]]


def test_without_a_table_there_are_the_even_widths_of_every_level() -> None:
    found = starts(CHAIN, LEVELS)
    even = [Projector(CHAIN, budget).project(CHAIN.space.full()) for budget in LEVELS]
    assert [(start.candidate, start.level, start.kind) for start in found] == [
        (even[0], 0, "uniform"),
        (even[1], 1, "uniform"),
    ]


def test_levels_take_turns_the_optimum_first_and_the_even_widths_after_it() -> None:
    found = starts(CHAIN, LEVELS, HARMS, 4)
    assert len({start.candidate.key for start in found}) == len(found)
    assert [(start.level, start.kind) for start in found[:4]] == [
        (0, "optimum"),
        (1, "optimum"),
        (0, "uniform"),
        (1, "uniform"),
    ]
    for start in found:
        assert LEVELS[start.level].fits(CHAIN.costs_of(CHAIN.space.array([start.candidate])))[0]


@pytest.mark.parametrize("level", [0, 1])
def test_the_first_start_of_a_level_is_the_least_harmful_of_all_that_fit(level: int) -> None:
    rows = np.array(list(itertools.product(*(site.choices for site in CHAIN.space.sites))))
    fitting = rows[LEVELS[level].fits(CHAIN.costs_of(rows))]

    def harm(row: np.ndarray) -> float:
        at = [site.choices.index(choice) for site, choice in zip(CHAIN.space.sites, row, strict=True)]
        return sum(own[place] for site, (own, place) in enumerate(zip(HARMS, at, strict=True)) if site != 2 or row[1])

    best = min(starts(CHAIN, LEVELS, HARMS, 3), key=lambda start: (start.level != level, start.kind != "optimum"))
    assert harm(CHAIN.space.array([best.candidate])[0]) == pytest.approx(min(map(harm, fitting)))


def test_starts_of_looser_levels_are_brought_within_tighter_ones() -> None:
    found = starts(CHAIN, LEVELS, HARMS, 4)
    assert within(CHAIN, LEVELS, found) == found
    tighter = [Budget({"macs": budget.limits["macs"] // 2}) for budget in LEVELS]
    kept = within(CHAIN, tighter, found)
    assert [(start.level, start.kind) for start in kept] == [(start.level, start.kind) for start in found]
    for start in kept:
        assert tighter[start.level].fits(CHAIN.costs_of(CHAIN.space.array([start.candidate])))[0]
