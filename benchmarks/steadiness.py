"""
How far apart measurements of one network lie, each a comparison with its teacher as a job makes it.

    python -m benchmarks.steadiness [--times 30] [--beside]

A `small_resnet` of half its teacher's width on 8 x 8 images: it answers within microseconds, which other programs
disturb most. Both forms of one set of calls are shown: the median over all turns of the ratio of their least times, and
the least time of all over the least time of all, which `statistic: min` stands for. With `--beside` a process that
trains has the same cores.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext

import numpy as np
import torch

from benchmarks.load import training
from search.catalog import Catalog
from search.latency.measure import warm
from search.latency.reading import bursts, comparison, value_of
from search.limits import Measurement
from search.spec import Pick

SHAPE = (1, 8, 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--beside", action="store_true", help="a process that trains has the same cores")
    given = parser.parse_args()
    torch.set_num_threads(1)
    measurement = Measurement(statistic="min")
    student, teacher = (
        Catalog().make("teachers", Pick(name="small_resnet", options={"width": width})).build(SHAPE, 10)
        for width in (16, 32)
    )
    found: dict[str, list[float]] = {"median over turns": [], "least over least": []}
    least = []
    with training() if given.beside else nullcontext():
        time.sleep(8.0 if given.beside else 0.0)  # it loads torch
        for _ in range(given.times):
            with warm(student, SHAPE, measurement) as one, warm(teacher, SHAPE, measurement) as other:
                first, second = bursts([one.run, other.run], seconds=1.0)
            least.append(min(value_of(turn, "min") for turn in first))
            turns = [value_of(a, "min") / value_of(b, "min") for a, b in zip(first, second, strict=True)]
            found["median over turns"].append(float(np.median(turns)))
            found["least over least"].append(comparison(first, second, "min", {}).ratio)
    print(f"the student answers one in {min(least) / 1000:.0f} microseconds at least\n")
    print("| ratio | least | 10 % | median | 90 % | greatest |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, ratios in found.items():
        cells = " | ".join(f"{value:.3f}" for value in np.quantile(ratios, (0, 0.1, 0.5, 0.9, 1)))
        print(f"| {name} | {cells} |")


if __name__ == "__main__":
    main()
