"""Cost polynomials against arithmetic done by hand, and the independent count against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from search.catalog import Catalog
from search.costs.measure import count
from search.costs.polynomial import Polynomials, Term, product, total

SITES = 4
sums = st.lists(
    st.builds(
        Term, st.integers(0, 10**6), st.lists(st.integers(0, SITES - 1), max_size=3).map(lambda at: tuple(sorted(at)))
    ),
    max_size=8,
)
rows = st.lists(st.lists(st.integers(0, 512), min_size=SITES, max_size=SITES), min_size=1, max_size=5)


def by_hand(terms: tuple[Term, ...] | list[Term], row: list[int]) -> int:
    value = 0
    for term in terms:
        monomial = term.coefficient
        for site in term.sites:
            monomial *= row[site]
        value += monomial
    return value


@given(sums, sums, rows)
def test_polynomials_are_evaluated_exactly(macs: list[Term], params: list[Term], choices: list[list[int]]) -> None:
    polynomials = Polynomials({"macs": total(macs), "params": total(params)})
    found = polynomials(np.array(choices, dtype=np.int64))
    assert found["macs"].dtype == np.int64
    assert found["macs"].tolist() == [by_hand(macs, row) for row in choices]
    assert found["params"].tolist() == [by_hand(params, row) for row in choices]


@given(sums, sums, rows)
def test_products_multiply_and_totals_add(one: list[Term], other: list[Term], choices: list[list[int]]) -> None:
    for row in choices:
        assert by_hand(product(one, other), row) == by_hand(one, row) * by_hand(other, row)
        assert by_hand(total(one, other), row) == by_hand(one, row) + by_hand(other, row)


def test_units_divide_choices() -> None:
    polynomials = Polynomials({"macs": (Term(7, (0, 1)), Term(5))}, units={0: 4})
    assert polynomials(np.array([[12, 3], [4, 1]]))["macs"].tolist() == [7 * 3 * 3 + 5, 7 + 5]


def test_many_rows_are_evaluated_in_pieces_without_a_seam() -> None:
    choices = np.stack([np.arange(10_001), np.ones(10_001, dtype=np.int64)], axis=1)
    found = Polynomials({"macs": (Term(3, (0, 0, 1)), Term(1))})(choices)
    assert (found["macs"] == 3 * np.arange(10_001) ** 2 + 1).all()


def test_no_rows_cost_nothing() -> None:
    assert Polynomials({"macs": (Term(1, (0,)),)})(np.zeros((0, 1), dtype=np.int64))["macs"].shape == (0,)


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
    assert found == {"macs": macs, "flops": 2 * macs, "params": params}
    assert model.training
    assert int(model[1].num_batches_tracked) == 0, "counting does not touch the statistics of batch norm"


@pytest.mark.parametrize(("name", "unit"), [("macs", "MACs"), ("flops", "FLOPs"), ("params", "parameters")])
def test_the_catalog_says_what_a_metric_is(name: str, unit: str) -> None:
    plugin = Catalog().load("costs", name)
    assert plugin(plugin.Options()).unit == unit
    entry = next(entry for entry in Catalog().describe("costs") if entry.name == name)
    assert entry.summary.endswith(".")
    assert "properties" not in entry.options or not entry.options["properties"]
