from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget
from search.errors import BudgetImpossible
from search.projection import Projector
from search.space import Candidate
from tests.search.chains import WIDTHS, Chain, Fork

CHAIN = Chain()
SPACE = CHAIN.space
FULL = {metric: int(cost[0]) for metric, cost in CHAIN.costs_of(SPACE.array([SPACE.full()])).items()}
LEAST = {metric: int(cost[0]) for metric, cost in CHAIN.costs_of(SPACE.array([SPACE.least()])).items()}

proposals = st.builds(
    lambda picks: SPACE.candidate(dict(zip(SPACE.by_name, picks, strict=True))),
    st.tuples(*(st.sampled_from(site.choices) for site in SPACE.sites)),
)
budgets = st.builds(
    lambda macs, params: Budget({"macs": macs, "params": params}),
    st.integers(LEAST["macs"], FULL["macs"]),
    st.integers(LEAST["params"], FULL["params"]),
)


def cost(candidate: Candidate) -> dict[str, int]:
    return {metric: int(values[0]) for metric, values in CHAIN.costs_of(SPACE.array([candidate])).items()}


@given(proposals, budgets)
def test_a_projection_fits_every_limit(proposal: Candidate, budget: Budget) -> None:
    assert all(verdict.fits for verdict in budget.judge(cost(Projector(CHAIN, budget).project(proposal))))


@given(proposals, budgets)
def test_no_width_of_a_projection_could_be_raised(proposal: Candidate, budget: Budget) -> None:
    projected = Projector(CHAIN, budget).project(proposal).as_dict()
    for site in SPACE.sites:
        wider = [choice for choice in site.choices if choice > projected[site.name]]
        if site.kind == "width" and wider and (site.within is None or projected[site.within]):
            raised = SPACE.candidate({**projected, site.name: wider[0]})
            assert not all(verdict.fits for verdict in budget.judge(cost(raised)))


@given(proposals, budgets)
def test_projecting_twice_changes_nothing(proposal: Candidate, budget: Budget) -> None:
    projector = Projector(CHAIN, budget)
    projected = projector.project(proposal)
    assert projector.project(projected) == projected


@given(proposals, budgets)
def test_a_block_that_was_taken_away_stays_away(proposal: Candidate, budget: Budget) -> None:
    if proposal["block"] == 0:
        assert Projector(CHAIN, budget).project(proposal)["block"] == 0


def test_a_loose_budget_leaves_the_teacher_as_it_is() -> None:
    assert Projector(CHAIN, Budget(FULL)).project(SPACE.full()) == SPACE.full()


def test_even_widths_stay_even_where_nothing_is_left_to_refill() -> None:
    halved = SPACE.candidate({"a": 8, "block": 1, "b": 8, "c": 8})
    assert Projector(CHAIN, Budget({"macs": cost(halved)["macs"]})).project(SPACE.full()) == halved


def test_a_block_is_taken_away_only_when_the_narrowest_widths_do_not_fit() -> None:
    narrow = {"a": 4, "block": 1, "b": 4, "c": 4}
    limit = cost(SPACE.candidate(narrow))["params"]
    assert Projector(CHAIN, Budget({"params": limit})).project(SPACE.full())["block"] == 1
    assert Projector(CHAIN, Budget({"params": limit - 1})).project(SPACE.full())["block"] == 0


def test_an_impossible_budget_names_the_smallest_reachable_value() -> None:
    with pytest.raises(BudgetImpossible, match=f"smallest reachable is {LEAST['macs']:,}") as caught:
        Projector(CHAIN, Budget({"macs": LEAST["macs"] - 1}))
    assert caught.value.errors[0].pointer == "/budget/macs"
    assert caught.value.errors[0].allowed == (str(LEAST["macs"]),)


FORK = Fork()
FORKS = [
    FORK.space.candidate(dict(zip(FORK.space.by_name, row, strict=True)))
    for row in itertools.product(*(site.choices for site in FORK.space.sites))
]
FORK_COSTS = FORK.costs_of(FORK.space.array(FORKS))


@given(st.sampled_from(FORKS), st.sampled_from(range(len(FORKS))), st.integers(0, 40), st.integers(0, 5))
def test_where_costs_contradict_each_other_a_projection_still_fits(
    proposal: Candidate, known: int, more_macs: int, more_params: int
) -> None:
    """Every budget that some student keeps, with that student far from the proposal."""
    limits = {
        "macs": int(FORK_COSTS["macs"][known]) + more_macs,
        "params": int(FORK_COSTS["params"][known]) + more_params,
    }
    budget = Budget(limits)
    projected = Projector(FORK, budget).project(proposal)
    row = FORK.space.array([projected])
    assert budget.fits(FORK.costs_of(row))[0]
    wider = [choice for choice in WIDTHS if choice > projected["w"]]
    if wider:
        raised = FORK.space.array([FORK.space.candidate({**projected.as_dict(), "w": wider[0]})])
        assert not budget.fits(FORK.costs_of(raised))[0]
    if budget.fits(FORK.costs_of(FORK.space.array([proposal])))[0]:
        assert {projected["one"], projected["other"]} == {proposal["one"], proposal["other"]}, (
            "what fits keeps its operators"
        )


def test_without_refilling_what_fits_stays_as_it_is_and_without_limits_everything_does() -> None:
    rng = np.random.default_rng(0)
    for budget in (Budget(), Budget({"macs": 300})):
        projector = Projector(CHAIN, budget, refill=False)
        for _ in range(20):
            candidate = CHAIN.space.sample(rng)
            fits = budget.fits(CHAIN.costs_of(CHAIN.space.array([candidate])))[0]
            projected = projector.project(candidate)
            assert (projected == candidate) == fits
            assert budget.fits(CHAIN.costs_of(CHAIN.space.array([projected])))[0]
