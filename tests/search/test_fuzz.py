"""Whatever network comes, a survey is exact or says why not."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings

from search.costs.measure import count
from search.errors import Unsupported
from search.spec import SpaceSpec
from search.surgery import survey
from tests.search.fuzz import Drawn, Plan, plans

NETWORKS = int(os.environ.get("STILLHOUSE_TEST_SURVEY_NETWORKS", "100"))
"""Drawn and surveyed; 1,000 before a release."""

pytestmark = pytest.mark.timeout(120 + NETWORKS)

SPACE = SpaceSpec(
    divisor=2, steps=4, operators=("low_rank", "separable"), groups=True, resolutions=(9,), min_kernel=1, min_keep=0.2
)
IMAGE = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@settings(max_examples=NETWORKS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans)
def test_a_survey_is_exact_or_says_why_not(plan: Plan) -> None:
    model = Drawn(plan).eval()
    try:
        found = survey(model, IMAGE, SPACE)
    except Unsupported:  # never another error: everything these networks do is seen through or frozen
        return
    for finding in found.report:
        assert (finding.site is None) == bool(finding.reason), finding
    with torch.no_grad():
        expected = model(IMAGE)
        same = found.graft(found.space.full())(IMAGE)
    assert (same - expected).abs().max() <= 1e-5 * expected.abs().max()
    rng = np.random.default_rng(0)
    candidates = [found.space.least(), *(found.space.sample(rng) for _ in range(4))]
    costs = found.costs(candidates)
    for at, candidate in enumerate(candidates):
        assert count(found.graft(candidate), IMAGE) == {metric: int(values[at]) for metric, values in costs.items()}


def test_most_of_the_wirings_are_understood() -> None:
    """So that the test above does not pass because everything is refused."""
    kinds: Counter[str] = Counter()
    for steps in (
        (("conv", 8, 3, False), ("residual", 2)),
        (("dense", 8), ("branches", 4, 8)),
        (("conv", 8, 1, False), ("grouped", 2), ("conv", 8, 1, False)),
        (("depthwise", 2, 5), ("gate", 4)),
        (("again",), ("norm", "group")),
        (("shuffle", 2), ("conv", 8, 1, False)),
    ):
        kinds.update(site.kind for site in survey(Drawn(Plan(8, steps, 1)).eval(), IMAGE, SPACE).space.sites)
    assert set(kinds) == {"width", "group", "removal", "kernel", "operator", "resolution"}
