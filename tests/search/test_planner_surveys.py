"""The planner on what surveys of real networks give, where candidates are too many to count."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch

from search.catalog import Catalog
from search.planner import Planner
from search.spec import Pick, SpaceSpec
from search.surgery import Survey, survey

SMALL = Pick(name="small_resnet", options={"width": 8, "depth": 1})
RESNET = Pick(name="torchvision", options={"builder": "resnet18"})
CASES = {
    "widths and blocks": (SMALL, SpaceSpec(divisor=2)),
    "operators": (SMALL, SpaceSpec(divisor=2, operators=("low_rank", "separable"), min_keep=0.25)),
    "resolutions": (SMALL, SpaceSpec(divisor=2, resolutions=(24, 28), min_keep=0.25)),
    "resnet18": (RESNET, SpaceSpec()),
}


@cache
def surveyed(case: str) -> Survey:
    pick, options = CASES[case]
    return survey(Catalog().make("teachers", pick).build((3, 32, 32), 10), torch.zeros(1, 3, 32, 32), options)


def limits_of(found: Survey, share: float) -> dict[str, int]:
    full = found.costs([found.space.full()])
    return {metric: int(share * full[metric][0]) for metric in ("macs", "params")}


def harms(found: Survey) -> list[list[float]]:
    """Rising as less is kept, and not alike at any two sites."""
    weights = np.random.default_rng(0).uniform(0.2, 2.0, len(found.space.sites))
    return [
        [float(weight * (1 - (choice + 1) / (site.full + 1)) ** 1.5) for choice in site.choices]
        for site, weight in zip(found.space.sites, weights, strict=True)
    ]


def harm_of(
    found: Survey, table: Sequence[Sequence[float]], choices: np.ndarray[tuple[int, ...], np.dtype[np.int64]]
) -> float:
    sites, names = found.space.sites, [site.name for site in found.space.sites]
    return sum(
        table[at][site.choices.index(int(choices[at]))]
        for at, site in enumerate(sites)
        if site.within is None or choices[names.index(site.within)]
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES)
def test_no_drawn_candidate_lies_outside_the_bounds_and_their_ends_are_built(case: str) -> None:
    found = surveyed(case)
    planner, rng = Planner(found.polynomials), np.random.default_rng(0)
    costs = found.costs([found.space.sample(rng) for _ in range(2000)])
    for metric, (least, most) in planner.bounds().items():
        assert least <= costs[metric].min()
        assert costs[metric].max() <= most
        for answer, end in ((planner.minimise(metric), least), (planner.maximise(metric), most)):
            assert answer.proved
            assert answer.choices is not None
            assert found.costs_of(answer.choices[None])[metric][0] == end


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("share", [0.5, 0.2])
def test_no_neighbour_of_the_least_harm_within_limits_is_better(case: str, share: float) -> None:
    """Nor is any of 2,000 drawn candidates, projected or not."""
    found = surveyed(case)
    limits, table = limits_of(found, share), harms(found)
    answer = Planner(found.polynomials).minimise(table, limits)
    assert answer.outcome == "optimal"
    assert answer.choices is not None
    assert answer.value == pytest.approx(harm_of(found, table, answer.choices))
    best = found.space.candidate(dict(zip(found.space.by_name, map(int, answer.choices), strict=True)))
    assert found.space.array([best])[0].tolist() == answer.choices.tolist(), "void sites are written as they should be"
    rng = np.random.default_rng(0)
    rivals = [*found.space.neighbours(best), *(found.space.sample(rng) for _ in range(2000))]
    rows = found.space.array(rivals)
    costs = found.costs_of(rows)
    fits = np.logical_and.reduce([costs[metric] <= limit for metric, limit in limits.items()])
    assert all(harm_of(found, table, row) >= answer.value - 1e-6 for row in rows[fits])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("case", CASES)
def test_one_below_what_can_be_had_jointly_is_refused_and_it_itself_accepted(case: str) -> None:
    """The least params with the macs held at a fifth, which no single bound tells."""
    found = surveyed(case)
    planner = Planner(found.polynomials)
    held = {"macs": limits_of(found, 0.2)["macs"], "activation_bytes": planner.bounds()["activation_bytes"][0]}
    least = planner.minimise("params", held)
    assert least.proved
    assert least.value is not None
    assert planner.fit({**held, "params": int(least.value)}).choices is not None
    below = {**held, "params": int(least.value) - 1}
    assert planner.fit(below).outcome == "infeasible"
    relaxed = planner.relax(below)
    assert relaxed is not None
    assert relaxed.alone["params"] == least.value
    assert planner.fit(relaxed.limits).choices is not None
