"""The grammar of limits: exact values, clear refusals."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from search.budget import Budget, Limit, limit_value
from search.errors import BudgetImpossible, UserError

costs = st.integers(1, 10**15)
units = st.sampled_from([("", 1), ("k", 10**3), ("K", 10**3), ("M", 10**6), ("G", 10**9), ("T", 10**12)])
decimals = st.decimals("0.0001", "999", places=4)

_limit: TypeAdapter[str] = TypeAdapter(Limit)


@given(decimals, units, st.sampled_from(["", " "]))
def test_absolute_limits_are_floored_exactly(number: object, unit: tuple[str, int], space: str) -> None:
    letter, factor = unit
    assert limit_value(f"{number}{space}{letter}", 1) == math.floor(Fraction(str(number)) * factor)


@given(st.decimals("0.0001", "100", places=4), costs)
def test_shares_are_the_largest_whole_number_allowed(share: object, teacher: int) -> None:
    value = limit_value(f"{share}%", teacher)
    assert Fraction(value) <= Fraction(str(share)) * teacher / 100 < value + 1


@given(costs)
def test_the_whole_share_is_the_teacher(teacher: int) -> None:
    assert limit_value("100%", teacher) == teacher
    assert limit_value(str(teacher), 1) == teacher


def test_the_example_of_the_module_holds() -> None:
    assert limit_value("20%", 22_901_345) == 4_580_269
    assert limit_value("22.9M", 1) == 22_900_000
    assert limit_value(" 1.2 G ", 1) == 1_200_000_000


@pytest.mark.parametrize(
    ("limit", "remedy"),
    [
        ("", "write a number"),
        ("twenty", "write a number"),
        ("-5%", "write a number"),
        ("1e6", "write a number"),
        ("1,000", "write a number"),
        ("٣%%", "write a number"),
        ("20 % %", "write a number"),
        ("5m", "M is million"),
        ("3 MB", "use k, M, G, T or %"),
        ("0%", "above zero"),
        ("0", "above zero"),
        ("120%", "at most 100%"),
        ("9999999T", "at most"),
        ("9" * 40, "write a number"),
    ],
)
def test_what_is_not_a_limit_is_refused_with_a_remedy(limit: str, remedy: str) -> None:
    with pytest.raises(UserError, match=remedy):
        limit_value(limit, 1000)
    with pytest.raises(ValidationError, match=remedy):
        _limit.validate_python(limit)


@pytest.mark.parametrize("limit", [True, None, ["20%"], {"max": 3}, float("nan"), float("inf"), -1, 0, 2**60])
def test_what_is_no_number_or_text_is_refused(limit: object) -> None:
    with pytest.raises(ValidationError):
        _limit.validate_python(limit)


@given(st.one_of(st.text(max_size=30), st.integers(), st.floats()))
def test_nothing_but_a_limit_passes_and_nothing_else_is_raised(limit: object) -> None:
    try:
        text = _limit.validate_python(limit)
    except ValidationError:
        return
    assert limit_value(text, 10**9) >= 0


@given(st.integers(1, 2**53))
def test_numbers_mean_themselves(limit: int) -> None:
    assert limit_value(_limit.validate_python(limit), 1) == limit


def test_fractions_written_as_numbers_mean_themselves() -> None:
    assert limit_value(_limit.validate_python(1500.75), 1) == 1500
    assert limit_value(_limit.validate_python(4.5e6), 1) == 4_500_000


TEACHER = {"macs": 1000, "params": 500}


def test_a_budget_is_worked_out_against_the_teacher() -> None:
    budget = Budget.of({"macs": "33.3%", "params": "0.2k"}, TEACHER)
    assert budget.limits == {"macs": 333, "params": 200}
    verdicts = {verdict.metric: verdict for verdict in budget.judge({"macs": 333, "params": 201})}
    assert verdicts["macs"].fits
    assert not verdicts["params"].fits
    assert (verdicts["params"].limit, verdicts["params"].value) == (200, 201)


@given(st.lists(st.tuples(st.integers(0, 700), st.integers(0, 700)), min_size=1, max_size=20))
def test_many_are_judged_as_one_is(rows: list[tuple[int, int]]) -> None:
    budget = Budget.of({"macs": "50%", "params": "40%"}, TEACHER)
    macs, params = np.array(rows, dtype=np.int64).T
    fits = budget.fits({"macs": macs, "params": params})
    for row, (one, other) in enumerate(rows):
        assert bool(fits[row]) == all(verdict.fits for verdict in budget.judge({"macs": one, "params": other}))


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="known are macs, params") as raised:
        Budget.of({"latency": "4"}, TEACHER)
    assert raised.value.errors[0].pointer == "/budget/latency"


def test_an_impossible_budget_names_the_smallest_value() -> None:
    budget = Budget.of({"macs": "15%"}, TEACHER)
    budget.check({"macs": 150, "params": 1}, TEACHER)
    with pytest.raises(BudgetImpossible, match="the smallest reachable is 157") as raised:
        budget.check({"macs": 157, "params": 1}, TEACHER)
    assert raised.value.smallest == 157
    assert raised.value.errors[0].pointer == "/budget/macs"
