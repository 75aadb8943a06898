"""The grammar of limits: exact values, clear refusals, nested levels."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import AT_LEAST, Budget, Limit, ladder, level_of, spelled
from search.errors import InvalidSpec, UserError
from search.limits import BudgetSpec, Measurement
from search.spec import JobSpec, read_spec

METRICS = ("macs", "flops", "params", "weight_bytes", "activation_bytes", "latency", "throughput")
UNITS = {
    "macs": {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "MACs": 1, "GMACs": 10**9},
    "flops": {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "FLOPs": 1, "MFLOPs": 10**6},
    "params": {"": 1, "k": 10**3, "M": 10**6, "k params": 10**3, "Mparams": 10**6},
    "weight_bytes": {"": 1, "B": 1, "kB": 1000, "KB": 1000, "MB": 10**6, "KiB": 1024, "MiB": 2**20, "GiB": 2**30},
    "latency": {"ns": 1, "us": 1000, "ms": 10**6, "s": 10**9},
    "throughput": {"/s": 1, "k/s": 1000, "M/s": 10**6},
}
"""Counted apart from the grammar: what a unit is worth in whole numbers of its metric."""

costs = st.integers(1, 10**15)
decimals = st.decimals("0.0001", "999", places=4)
written = st.sampled_from([(metric, unit) for metric, units in UNITS.items() for unit in units])


def value(metric: str, limit: object, teacher: int = 1) -> int:
    return Limit.read(metric, limit).value(teacher)


def spec(budget: object) -> JobSpec:
    return read_spec({"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": budget})


@given(decimals, written, st.sampled_from(["", " "]))
def test_absolute_limits_are_exact_and_rounded_to_the_strict_side(
    number: object, written: tuple[str, str], space: str
) -> None:
    metric, unit = written
    exact = Fraction(str(number)) * UNITS[metric][unit]
    rounded = math.ceil(exact) if metric == "throughput" else math.floor(exact)
    assert value(metric, f"{number}{space}{unit}") == rounded


@given(st.decimals("0.0001", "100", places=4), costs, st.sampled_from([m for m in METRICS if m != "throughput"]))
def test_shares_are_the_largest_whole_number_allowed(share: object, teacher: int, metric: str) -> None:
    found = value(metric, f"{share}%", teacher)
    assert Fraction(found) <= Fraction(str(share)) * teacher / 100 < found + 1


@given(st.decimals("1", "999", places=3), costs)
def test_a_factor_divides_a_cost_and_multiplies_a_rate(factor: object, teacher: int) -> None:
    exact = Fraction(str(factor))
    assert value("macs", f"{factor}x smaller", teacher) == math.floor(teacher / exact)
    assert value("latency", f"{factor}x faster", teacher) == math.floor(teacher / exact)
    assert value("throughput", f"{factor}x faster", teacher) == math.ceil(teacher * exact)


@given(costs)
def test_the_whole_share_is_the_teacher(teacher: int) -> None:
    assert value("macs", "100%", teacher) == value("macs", "1x smaller", teacher) == teacher
    assert value("macs", str(teacher)) == teacher


@given(costs, st.tuples(decimals, decimals), written)
def test_what_is_written_larger_comes_to_no_less(
    teacher: int, numbers: tuple[Any, Any], written: tuple[str, str]
) -> None:
    metric, unit = written
    less, more = sorted(numbers)
    assert value(metric, f"{less}{unit}", teacher) <= value(metric, f"{more}{unit}", teacher)
    if metric != "throughput" and more <= 100:
        assert value(metric, f"{less}%", teacher) <= value(metric, f"{more}%", teacher)


def test_the_examples_of_the_documents_hold() -> None:
    assert value("macs", "20%", 22_901_345) == 4_580_269
    assert value("macs", "22.9M") == 22_900_000
    assert value("macs", " 1.2 G ") == 1_200_000_000
    assert value("macs", "1.5 GMACs") == 1_500_000_000
    assert value("flops", "3 GFLOPs") == 3_000_000_000
    assert value("weight_bytes", "3 MiB") == 3 * 2**20
    assert value("latency", "4 ms") == 4_000_000
    assert value("throughput", "200/s") == 200
    assert value("throughput", "2x faster", 101) == 202


@pytest.mark.parametrize(
    ("metric", "limit", "remedy"),
    [
        ("macs", "", "write a number"),
        ("macs", "twenty", "write a number"),
        ("macs", "-5%", "write a number"),
        ("macs", "1e6", "write a number"),
        ("macs", "1,000", "write a number"),
        ("macs", "٣%", "write a number"),
        ("macs", "20 % %", "write a number"),
        ("macs", "5m", "M is million"),
        ("macs", "3 MB", "use k, M, G, T or %"),
        ("macs", "3 ms", "use k, M, G, T or %"),
        ("macs", "1.5 GFLOPs", 'write "0.75 GMACs" here, or the limit under `flops`'),
        ("macs", "1 FLOPs", 'write "0.5 MACs"'),
        ("macs", "123456789012345678.000000000001 FLOPs", 'write "61728394506172839.0000000000005 MACs"'),
        ("flops", "1.5 GMACs", 'write "3 GFLOPs" here, or the limit under `macs`'),
        ("macs", "2x faster", 'write "2x smaller"'),
        ("latency", "2x smaller", 'write "2x faster"'),
        ("macs", "0.5x smaller", "at least 1x"),
        ("macs", "0x smaller", "at least 1x"),
        ("weight_bytes", "3M", "use B, kB, MB, GB, KiB, MiB, GiB or %"),
        ("latency", "4", 'write a time such as "4 ms"'),
        ("latency", 4, 'write a time such as "4 ms"'),
        ("throughput", "200", 'write a rate such as "200/s"'),
        ("throughput", "50%", "would allow a slower student"),
        ("macs", "0%", "above zero"),
        ("macs", "0", "above zero"),
        ("macs", "120%", "at most 100%"),
        ("macs", "9999999T", "at most"),
        ("macs", "9" * 40, "write a number"),
        *(("macs", wrong, "number or a text") for wrong in (True, None, ["20%"], {"max": 3}, math.nan, math.inf)),
        ("macs", -1, "write a number"),
        ("macs", 0, "above zero"),
        ("macs", 2**59, "at most"),
    ],
)
def test_what_is_not_a_limit_is_refused_with_a_remedy(metric: str, limit: object, remedy: str) -> None:
    with pytest.raises(UserError) as raised:
        Limit.read(metric, limit)
    assert remedy in raised.value.message


@given(st.sampled_from(METRICS), st.one_of(st.text(max_size=30), st.integers(), st.floats()))
def test_nothing_but_a_limit_passes_and_nothing_else_is_raised(metric: str, limit: object) -> None:
    try:
        read = Limit.read(metric, limit)
    except UserError:
        return
    assert read.value(10**9) >= 0


@given(st.integers(1, 2**53))
def test_numbers_mean_themselves(limit: int) -> None:
    assert value("macs", limit) == limit


def test_fractions_written_as_numbers_mean_themselves() -> None:
    assert value("macs", 1500.75) == 1500
    assert value("macs", 4.5e6) == 4_500_000


TEACHER = {"macs": 1000, "params": 500}


def budget_of(limits: dict[str, str], teacher: dict[str, int]) -> Budget:
    return Budget.of({metric: Limit.read(metric, limit) for metric, limit in limits.items()}, teacher)


def test_a_budget_is_worked_out_against_the_teacher() -> None:
    budget = budget_of({"macs": "33.3%", "params": "0.2k"}, TEACHER)
    assert budget.limits == {"macs": 333, "params": 200}
    verdicts = {verdict.metric: verdict for verdict in budget.judge({"macs": 333, "params": 201})}
    assert verdicts["macs"].fits
    assert not verdicts["params"].fits
    assert (verdicts["params"].limit, verdicts["params"].value) == (200, 201)


def test_a_throughput_is_a_least_value() -> None:
    budget = Budget({"throughput": 200, "macs": 10})
    verdicts = {verdict.metric: verdict for verdict in budget.judge({"throughput": 201, "macs": 10})}
    assert verdicts["throughput"].fits
    assert verdicts["throughput"].at_least
    assert not verdicts["macs"].at_least
    assert not budget.holds({"throughput": 199, "macs": 10})


@given(st.lists(st.tuples(st.integers(1, 700), st.integers(1, 700)), min_size=1, max_size=20))
def test_many_are_judged_as_one_is(rows: list[tuple[int, int]]) -> None:
    budget = Budget({"macs": 500, "throughput": 200})
    macs, rate = np.array(rows, dtype=np.int64).T
    fits, excess = (found({"macs": macs, "throughput": rate}) for found in (budget.fits, budget.excess))
    for row, (one, other) in enumerate(rows):
        cost = {"macs": one, "throughput": other}
        assert bool(fits[row]) == all(verdict.fits for verdict in budget.judge(cost)) == budget.holds(cost)
        assert bool(fits[row]) == (excess[row] <= 1)


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(UserError, match="known are macs, params") as raised:
        budget_of({"latency": "4 ms"}, TEACHER)
    assert raised.value.errors[0].pointer == "/budget/latency"


@pytest.mark.parametrize("metric", ["macs", "weight_bytes", "latency", "throughput", "carats"])
def test_a_limit_is_spelled_as_it_is_read(metric: str) -> None:
    limit = Limit.read(metric, spelled(metric, 1234567))
    assert (limit.relative, limit.value(1)) == (False, 1234567)


shares = st.lists(st.integers(1, 100), min_size=1, max_size=6, unique=True).map(lambda found: sorted(found)[::-1])


@given(shares, st.integers(1, 100), costs.filter(lambda cost: cost > 1000), st.lists(st.integers(1, 10**15)))
def test_levels_are_nested_and_a_cost_belongs_to_the_tightest_it_fits(
    steps: list[int], other: int, teacher: int, found: list[int]
) -> None:
    limits = spec({"macs": [f"{step}%" for step in steps], "params": f"{other}%"}).budget.limits
    levels = ladder(limits, {"macs": teacher, "params": 700})
    assert [level.limits["macs"] for level in levels] == [teacher * step // 100 for step in steps]
    assert {level.limits["params"] for level in levels} == {700 * other // 100}
    for macs in found:
        cost = {"macs": macs, "params": 1}
        kept = [level.holds(cost) for level in levels]
        assert kept == sorted(kept, reverse=True), "what fits a level fits all looser ones"
        assert level_of(levels, cost) == max(sum(kept) - 1, 0)


def test_levels_of_different_kinds_must_turn_out_to_fall() -> None:
    """Whether a share is tighter than a number depends on the teacher."""
    limits = spec({"macs": ["50%", "400", "30%"]}).budget.limits
    assert [level.limits["macs"] for level in ladder(limits, TEACHER)] == [500, 400, 300]
    with pytest.raises(UserError, match="must fall") as raised:
        ladder(limits, {"macs": 700})
    assert raised.value.errors[0].pointer == "/budget/macs/1"


@pytest.mark.parametrize(
    "budget",
    [
        {"macs": "20%", "params": "200k"},
        {"macs": ["50%", "30%"], "params": ["0.9M", "30%"], "weight_bytes": "3 MiB"},
        {"macs": 4_500_000, "mine": ["3", "2"]},
        {"latency": "4 ms", "throughput": {"limit": "2x faster", "batch": 32, "threads": 2}},
        {"latency": ["2x faster", "4x faster"], "throughput": ["200/s", "400/s"]},
        {"accuracy": {"max_drop": 1.0}, "params": "50%"},
        {"accuracy": {"at_least": "91.5%", "cheapest": "params"}},
        {"front": {"costs": ["macs", "params"]}},
        {"front": {"costs": ["macs"]}, "params": "50%"},
    ],
)
def test_a_budget_on_record_is_read_as_it_was_written(budget: dict[str, Any]) -> None:
    first = spec(budget)
    again = read_spec(first.model_dump(mode="json"))
    assert again == first
    assert again.budget.limits == first.budget.limits
    assert set(first.model_dump(mode="json")["budget"]) == set(budget)


@given(st.dictionaries(st.sampled_from(METRICS[:5]), shares, min_size=1))
def test_any_ladders_of_shares_survive_the_record(budget: dict[str, list[int]]) -> None:
    count = min(len(steps) for steps in budget.values())
    first = spec({metric: [f"{step}%" for step in steps[:count]] for metric, steps in budget.items()}).budget
    assert first.levels == count
    assert BudgetSpec.model_validate(first.model_dump(mode="json")) == first
    assert {metric: [limit.amount * 100 for limit in steps] for metric, steps in first.limits.items()} == {
        metric: steps[:count] for metric, steps in budget.items()
    }


def test_a_time_is_measured_as_its_limit_says() -> None:
    budget = spec({"latency": "4 ms", "throughput": {"limit": "200/s", "runtime": "torch-cpu", "batch": 8}}).budget
    assert budget.measurements == {
        "latency": Measurement(),
        "throughput": Measurement(runtime="torch-cpu", batch=8),
    }
    assert frozenset(METRICS) >= AT_LEAST == {"throughput"}


@pytest.mark.parametrize(
    ("budget", "pointer", "remedy"),
    [
        ({}, "/budget", "at least 1"),
        ({"macs": None}, "/budget/macs", "leave out what is not limited"),
        ({"macs": []}, "/budget/macs", "1 to 16"),
        ({"macs": ["50%", "x"]}, "/budget/macs/1", "write a number"),
        ({"macs": ["50%", "60%"]}, "/budget/macs/1", "must fall"),
        ({"macs": ["50%", "30%", "30%"]}, "/budget/macs/2", "must fall"),
        ({"throughput": ["200/s", "100/s"]}, "/budget/throughput/1", "must rise"),
        ({"macs": ["50%", "30%"], "params": ["50%", "30%", "20%"]}, "/budget/params", "`macs` has 2"),
        ({"latency": {"limit": ["4 ms", "5 xs"]}}, "/budget/latency/limit/1", "use ns, us, ms, s or %"),
        ({"latency": {"limit": "4 ms", "thread": 2}}, "/budget/latency/thread", 'mean "threads"?'),
        ({"latency": {"limit": "4 ms", "statistic": "p42"}}, "/budget/latency/statistic", "'p95'"),
        ({"latency": {"batch": 8}}, "/budget/latency/limit", "required"),
        ({"accuracy": "90%"}, "/budget/accuracy", "dictionary"),
        ({"accuracy": {}}, "/budget/accuracy", "exactly one of"),
        ({"accuracy": {"max_drop": 1, "at_least": "90%"}}, "/budget/accuracy", "exactly one of"),
        ({"accuracy": {"max_drop": -1}}, "/budget/accuracy/max_drop", "greater than or equal to 0"),
        ({"accuracy": {"at_least": "0.9"}}, "/budget/accuracy/at_least", 'such as "91.5%"'),
        ({"accuracy": {"max_drop": 1, "cheapest": "throughput"}}, "/budget/accuracy/cheapest", "less is better"),
        ({"accuracy": {"max_drop": 1, "cheapest": "latency"}}, "/budget/accuracy/cheapest", "Add `latency`"),
        ({"accuracy": {"max_drop": 1}, "params": ["50%", "20%"]}, "/budget/params", "one limit"),
        ({"front": {"costs": []}}, "/budget/front/costs", "at least 1"),
        ({"front": {"costs": ["macs", "throughput"]}}, "/budget/front/costs/1", "less is better"),
        ({"front": {"costs": ["macs", "macs"]}}, "/budget/front/costs/1", "twice"),
        ({"front": {"costs": ["macs", "latency"]}}, "/budget/front/costs/1", "Add `latency`"),
        ({"front": {}, "accuracy": {"max_drop": 1}}, "/budget/front", "leave out one"),
        ({"front": {}, "params": ["50%", "20%"]}, "/budget/params", "one limit"),
        ({"bad name": "20%"}, "/budget/bad name", "pattern"),
    ],
)
def test_a_wrong_budget_is_pointed_at(budget: dict[str, Any], pointer: str, remedy: str) -> None:
    with pytest.raises(InvalidSpec) as raised:
        spec(budget)
    assert [error.pointer for error in raised.value.errors] == [pointer]
    assert remedy in raised.value.message


def test_every_wrong_level_is_told_at_once() -> None:
    with pytest.raises(InvalidSpec) as raised:
        spec({"macs": ["50%", "x", "20m"], "params": "-1"})
    assert [error.pointer for error in raised.value.errors] == ["/budget/macs/1", "/budget/macs/2", "/budget/params"]


@pytest.mark.parametrize(
    ("goal", "floor"), [({"max_drop": 1.0}, 0.94), ({"max_drop": 0}, 0.95), ({"at_least": "91.5%"}, 0.915)]
)
def test_a_floor_is_worked_out_in_decimals(goal: dict[str, Any], floor: float) -> None:
    """0.95 - 0.01 is 0.94 as a person counts, and 0.9399999999999999 as floats do."""
    accuracy = spec({"accuracy": goal}).budget.accuracy
    assert accuracy is not None
    assert accuracy.floor(0.95) == floor
