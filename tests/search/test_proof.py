"""Whether a budget can be kept: said with the numbers that would do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget
from search.costs.polynomial import Polynomials, Term, Variable
from search.errors import BudgetImpossible
from search.planner import Planner
from search.proof import witness

TEACHER = {"macs": 1000, "params": 900}
OPERATORS = Polynomials(
    [(0, 1, 2)],
    [Variable((0,), (157, 400, 1000)), Variable((0,), (900, 300, 200))],
    {"macs": (Term(1, (0,)),), "params": (Term(1, (1,)),)},
)
"""One site: what has fewer macs has more params."""


def refused(limits: dict[str, int]) -> BudgetImpossible:
    with pytest.raises(BudgetImpossible) as caught:
        witness(Planner(OPERATORS), Budget(limits), TEACHER)
    return caught.value


def test_below_the_smallest_a_budget_is_refused_with_that_number_and_at_it_accepted() -> None:
    error = refused({"macs": 150})
    assert "has macs <= 150: the smallest reachable is 157 (15.70 % of the teacher's 1,000)" in error.message
    assert [(found.pointer, found.allowed) for found in error.errors] == [("/budget/macs", ("157",))]
    assert witness(Planner(OPERATORS), Budget({"macs": 157}), TEACHER).tolist() == [0]


def test_limits_that_contradict_each_other_are_refused_together() -> None:
    error = refused({"macs": 390, "params": 290})
    assert "has macs <= 390 and params <= 290 together" in error.message
    assert "it would take macs <= 1,000 or params <= 900" in error.message
    assert error.needed == {"macs": "400", "params": "300"}, "all limits 1.03 times as wide"
    assert {found.pointer for found in error.errors} == {"/budget/macs", "/budget/params"}


@given(st.integers(1, 1100), st.integers(1, 1000))
def test_what_a_refusal_asks_for_is_accepted(macs: int, params: int) -> None:
    limits = {"macs": macs, "params": params}
    costs = OPERATORS(np.array([[0], [1], [2]]))
    try:
        found = witness(Planner(OPERATORS), Budget(limits), TEACHER)
        assert all(OPERATORS(found[None])[metric][0] <= limit for metric, limit in limits.items())
    except BudgetImpossible as error:
        assert not ((costs["macs"] <= macs) & (costs["params"] <= params)).any()
        eased = Budget(limits | {metric: int(limit) for metric, limit in error.needed.items()})
        witness(Planner(OPERATORS), eased, TEACHER)


def test_a_rate_is_refused_with_the_largest_reachable() -> None:
    costs = Polynomials(
        [(0, 1)], [Variable((0,), (20, 40))], {"throughput": (Term(1, (0,)),)}, rates={"throughput": 3000}
    )
    with pytest.raises(BudgetImpossible, match="throughput >= 200: the largest reachable is 150") as caught:
        witness(Planner(costs), Budget({"throughput": 200}), {"throughput": 75})
    assert caught.value.needed == {"throughput": "150/s"}
