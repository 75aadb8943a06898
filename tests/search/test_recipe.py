"""What levels a spec comes to for a teacher."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget
from search.errors import BudgetImpossible, InvalidSpec, UserError
from search.files import Files
from search.recipe import Recipe, prepare
from tests.workers.small_job import small_spec

BOUNDS = {"macs": (1_000, 1_000_000), "flops": (2_000, 2_000_000), "params": (50, 20_000)}


class Found:
    """As much of a survey as levels are worked out from."""

    def __init__(self, **bounds: tuple[int, int]) -> None:
        self._bounds = BOUNDS | bounds

    def bounds(self) -> dict[str, tuple[int, int]]:
        return self._bounds


def recipe(budget: dict[str, Any]) -> Recipe:
    return prepare(small_spec(budget=budget), Files(cache=Path("unused")))


def levels(budget: dict[str, Any], **bounds: tuple[int, int]) -> tuple[Budget, ...]:
    return recipe(budget).levels(Found(**bounds))  # type: ignore[arg-type]


def test_a_job_without_a_ladder_has_one_level() -> None:
    assert levels({"macs": "20%", "params": "4k"}) == (Budget({"macs": 200_000, "params": 4_000}),)


def test_a_ladder_has_a_level_for_each_of_its_limits() -> None:
    found = levels({"macs": ["50%", "20k"], "params": "50%"})
    assert found == (Budget({"macs": 500_000, "params": 10_000}), Budget({"macs": 20_000, "params": 10_000}))
    assert recipe({"macs": ["50%", "20k"]}).budget(Found()) == Budget({"macs": 500_000})  # type: ignore[arg-type]


def test_an_impossible_level_is_pointed_at() -> None:
    with pytest.raises(BudgetImpossible, match="the smallest reachable is 1,000") as raised:
        levels({"macs": ["50%", "999"]})
    assert raised.value.errors[0].pointer == "/budget/macs/1"
    with pytest.raises(BudgetImpossible) as raised:
        levels({"macs": ["50%", "10%"], "params": "49"})
    assert raised.value.errors[0].pointer == "/budget/params"


def test_an_accuracy_to_be_kept_gives_six_levels_even_on_a_logarithmic_scale() -> None:
    found = levels({"accuracy": {"max_drop": 1}, "params": "60%"})
    assert len(found) == 6
    assert {budget.limits["params"] for budget in found} == {12_000}
    macs = [budget.limits["macs"] for budget in found]
    steps = [math.log(former / later) for former, later in itertools.pairwise(macs)]
    assert steps == pytest.approx([math.log(1000) / 6] * 5, rel=1e-3)
    assert math.log(1_000_000 / macs[0]) == pytest.approx(math.log(1000) / 12, rel=1e-3)
    assert math.log(macs[-1] / 1_000) == pytest.approx(math.log(1000) / 12, rel=1e-3)


def test_a_limit_of_the_cost_to_be_made_small_is_where_its_levels_begin() -> None:
    found = levels({"accuracy": {"max_drop": 1, "cheapest": "params"}, "params": "10%"})
    assert all("macs" not in budget.limits for budget in found)
    params = [budget.limits["params"] for budget in found]
    assert 50 <= params[-1] < params[0] <= 2_000
    assert recipe({"accuracy": {"max_drop": 1}}).budget(Found()) == Budget({})  # type: ignore[arg-type]


@given(st.integers(1, 10**12), st.integers(0, 10**12))
def test_levels_fall_and_lie_between_the_smallest_student_and_the_teacher(least: int, more: int) -> None:
    found = levels({"accuracy": {"max_drop": 1}}, macs=(least, least + more))
    macs = [budget.limits["macs"] for budget in found]
    assert macs == sorted(set(macs), reverse=True)
    assert 1 <= len(macs) <= 6
    assert least <= macs[-1]
    assert macs[0] <= least + more


@pytest.mark.parametrize(
    ("budget", "pointer"),
    [
        ({"mac": "20%"}, "/budget/mac"),
        ({"accuracy": {"max_drop": 1, "cheapest": "mac"}}, "/budget/accuracy/cheapest"),
    ],
)
def test_a_cost_that_nobody_knows_is_refused_before_anything_is_built(budget: dict[str, Any], pointer: str) -> None:
    with pytest.raises(InvalidSpec, match="no cost is called") as raised:
        recipe(budget)
    assert [error.pointer for error in raised.value.errors] == [pointer]


def test_a_cost_that_the_survey_does_not_know_is_refused() -> None:
    made = recipe({"accuracy": {"max_drop": 1, "cheapest": "flops"}, "params": "50%"})

    class Less(Found):
        def bounds(self) -> dict[str, tuple[int, int]]:
            return {"params": BOUNDS["params"]}

    with pytest.raises(UserError, match="no cost is called `flops`") as raised:
        made.levels(Less())  # type: ignore[arg-type]
    assert raised.value.errors[0].pointer == "/budget/accuracy/cheapest"
