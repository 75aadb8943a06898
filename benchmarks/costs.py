"""
How fast candidates are costed: our polynomials against building the network and counting it.

    python -m benchmarks.costs

Both do the same candidates in one process, and must agree to the unit; the ratio is what travels between machines.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from search.catalog import Catalog
from search.costs.measure import count
from search.spec import Pick, SpaceSpec
from search.surgery import survey

TEACHERS = (
    ("small_resnet", Pick(name="small_resnet"), 32, SpaceSpec(divisor=2)),
    ("small_mobilenet", Pick(name="small_mobilenet"), 32, SpaceSpec(divisor=2)),
    ("torchvision resnet50", Pick(name="torchvision", options={"builder": "resnet50"}), 64, SpaceSpec()),
)
BUILT = 20
COSTED = 100_000


def main() -> None:
    print(f"{'teacher':22}{'sites':>6}{'costed/s':>14}{'built and counted/s':>22}{'ratio':>12}")
    for name, pick, size, options in TEACHERS:
        model = Catalog().make("teachers", pick).build((3, size, size), 10)
        example = torch.randn(1, 3, size, size)
        found = survey(model, example, options)
        rng = np.random.default_rng(0)
        candidates = [found.space.sample(rng) for _ in range(BUILT)]
        began = time.perf_counter()
        counted = [count(found.graft(candidate), example) for candidate in candidates]
        built_per_second = BUILT / (time.perf_counter() - began)
        costs = found.costs(candidates)
        for metric, values in costs.items():
            assert values.tolist() == [network[metric] for network in counted], metric
        rows = np.tile(found.space.array(candidates), (COSTED // BUILT, 1))
        began = time.perf_counter()
        found.costs_of(rows)
        costed_per_second = len(rows) / (time.perf_counter() - began)
        print(
            f"{name:22}{len(found.space.sites):6}{costed_per_second:14,.0f}{built_per_second:22,.1f}"
            f"{costed_per_second / built_per_second:12,.0f}"
        )


if __name__ == "__main__":
    main()
