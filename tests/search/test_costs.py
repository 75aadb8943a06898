"""Cost polynomials against arithmetic done by hand, and the independent count against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search.catalog import Catalog
from search.costs.measure import count
from search.costs.polynomial import Polynomials, Term, Variable, product, total

SITES = (tuple(range(0, 17)), (1, 2, 5), (0, 1), (8, 16, 64, 512))
"""The choices of four sites."""
VARIABLES = (
    Variable((0,), SITES[0]),
    Variable((1,), (9, 4, 25)),
    Variable((2,), SITES[2]),
    Variable((3,), (1, 2, 8, 64)),
    Variable((2, 1), (0, 0, 0, 7, 3, 1)),
)
sums = st.lists(
    st.builds(
        Term,
        st.integers(0, 10**6),
        st.lists(st.integers(0, len(VARIABLES) - 1), max_size=3).map(lambda at: tuple(sorted(at))),
    ),
    max_size=8,
)
rows = st.lists(st.tuples(*(st.sampled_from(site) for site in SITES)), min_size=1, max_size=5)


def by_hand(terms: tuple[Term, ...] | list[Term], row: tuple[int, ...]) -> int:
    a, b, c, d = row
    values = [a, {1: 9, 2: 4, 5: 25}[b], c, d // 8, {1: 7, 2: 3, 5: 1}[b] if c else 0]
    return sum(term.coefficient * math.prod(values[at] for at in term.variables) for term in terms)


@given(sums, sums, st.lists(sums, min_size=1, max_size=3), rows)
def test_polynomials_are_evaluated_exactly(
    macs: list[Term], params: list[Term], steps: list[list[Term]], choices: list[tuple[int, ...]]
) -> None:
    peak = {"activation_bytes": tuple(total(step) for step in steps)}
    polynomials = Polynomials(SITES, VARIABLES, {"macs": total(macs), "params": total(params)}, peak)
    found = polynomials(np.array(choices, dtype=np.int64))
    assert found["macs"].dtype == np.int64
    assert found["macs"].tolist() == [by_hand(macs, row) for row in choices]
    assert found["params"].tolist() == [by_hand(params, row) for row in choices]
    assert found["activation_bytes"].tolist() == [max(by_hand(step, row) for step in steps) for row in choices]


@given(sums, sums, rows)
def test_products_multiply_and_totals_add(one: list[Term], other: list[Term], choices: list[tuple[int, ...]]) -> None:
    for row in choices:
        assert by_hand(product(one, other), row) == by_hand(one, row) * by_hand(other, row)
        assert by_hand(total(one, other), row) == by_hand(one, row) + by_hand(other, row)


def test_many_rows_are_evaluated_in_pieces_without_a_seam() -> None:
    sites = (tuple(range(10_001)), (1,))
    choices = np.stack([np.arange(10_001), np.ones(10_001, dtype=np.int64)], axis=1)
    variables = [Variable((at,), site) for at, site in enumerate(sites)]
    found = Polynomials(sites, variables, {"macs": (Term(3, (0, 0, 1)), Term(1))})(choices)
    assert (found["macs"] == 3 * np.arange(10_001) ** 2 + 1).all()


@given(sums, st.integers(1, 10**6), st.integers(1, 10**12), rows)
def test_a_measured_cost_is_rounded_up_and_a_rate_down(
    terms: list[Term], parts: int, work: int, choices: list[tuple[int, ...]]
) -> None:
    time = total([Term(1), *terms])
    polynomials = Polynomials(
        SITES,
        VARIABLES,
        {"latency": time, "throughput": time},
        fractions={"latency": parts},
        rates={"throughput": work},
    )
    found = polynomials(np.array(choices, dtype=np.int64))
    for row, latency, throughput in zip(choices, found["latency"], found["throughput"], strict=True):
        value = by_hand(time, row)
        assert (latency - 1) * parts < value <= latency * parts
        assert throughput * value <= work < (throughput + 1) * value


@given(sums, st.integers(1, 10**6), st.integers(1, 10**12), st.integers(1, 10**6), rows)
def test_a_limit_is_kept_just_when_the_sum_below_it_is_no_higher_than_its_ceiling(
    terms: list[Term], parts: int, work: int, limit: int, choices: list[tuple[int, ...]]
) -> None:
    time = total([Term(1), *terms])
    polynomials = Polynomials(
        SITES,
        VARIABLES,
        {"latency": time, "throughput": time, "macs": time},
        fractions={"latency": parts},
        rates={"throughput": work},
    )
    found = polynomials(np.array(choices, dtype=np.int64))
    for at, row in enumerate(choices):
        value = by_hand(time, row)
        assert (found["latency"][at] <= limit) == (value <= polynomials.ceiling("latency", limit))
        assert (found["throughput"][at] >= limit) == (value <= polynomials.ceiling("throughput", limit))
        assert (found["macs"][at] <= limit) == (value <= polynomials.ceiling("macs", limit))


def test_no_rows_cost_nothing() -> None:
    polynomials = Polynomials(SITES, VARIABLES, {"macs": (Term(1, (0,)),)}, {"activation_bytes": ((Term(1, (3,)),),)})
    assert {metric: cost.shape for metric, cost in polynomials(np.zeros((0, 4), dtype=np.int64)).items()} == {
        "macs": (0,),
        "activation_bytes": (0,),
    }


@pytest.mark.timeout(60)  # the first count in a process imports torch's compiler
def test_a_network_is_counted_as_the_closed_form_says() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 16x16 positions
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 12, 1, groups=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    ).train()
    macs = 256 * (8 * 3 * 9 + 8 * 9 + 12 * 4) + 12 * 10
    params = (8 * 27 + 8) + 16 + 72 + (12 * 4 + 12) + (120 + 10)
    found = count(model, torch.randn(5, 3, 32, 32))
    assert found == {
        "macs": macs,
        "flops": 2 * macs,
        "params": params,
        "weight_bytes": 4 * params + 4 * (8 + 8) + 8,  # batch norm's running statistics and its count of batches
        "activation_bytes": 4 * (3 * 32 * 32 + 8 * 16 * 16),  # while the first convolution reads the image
    }
    assert model.training
    assert int(model[1].num_batches_tracked) == 0, "counting does not touch the statistics of batch norm"


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("macs", "MACs"),
        ("flops", "FLOPs"),
        ("params", "parameters"),
        ("weight_bytes", "bytes"),
        ("activation_bytes", "bytes"),
        ("latency", "nanoseconds a batch"),
        ("throughput", "images a second"),
    ],
)
def test_the_catalog_says_what_a_metric_is(name: str, unit: str) -> None:
    plugin = Catalog().load("costs", name)
    assert plugin(plugin.Options()).unit == unit
    entry = next(entry for entry in Catalog().describe("costs") if entry.name == name)
    assert entry.summary.endswith(".")
    assert "properties" not in entry.options or not entry.options["properties"]
