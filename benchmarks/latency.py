"""
How well latency is predicted: from a table of thirteen networks, for twelve that are not in it.

    python -m benchmarks.latency [TEACHER[:STATISTIC] ...]

Each of the twelve is built, exported, and run in turns with the teacher; the measured number is its ratio times the
teacher's latency in the table, so a machine that is slower for a while does not count as an error. The statistic is the
median, as in a job, unless another is named; `min` is what a busy machine disturbs least.
"""

from __future__ import annotations

import sys
import time

import numpy as np
import torch
from numpy.typing import NDArray

from search.catalog import Catalog
from search.latency.measure import compare
from search.latency.model import Timed
from search.latency.table import NETWORKS, Table, spread, tabulate
from search.limits import Measurement
from search.spec import Pick, SpaceSpec
from search.surgery import Survey, survey

TEACHERS = {
    "small_resnet": (Pick(name="small_resnet"), 32, SpaceSpec(divisor=2)),
    "resnet18": (Pick(name="torchvision", options={"builder": "resnet18"}), 64, SpaceSpec()),
    "mobilenet_v2": (Pick(name="torchvision", options={"builder": "mobilenet_v2"}), 64, SpaceSpec()),
}
OTHERS = 12


def main() -> None:
    torch.set_num_threads(1)
    for asked in sys.argv[1:] or TEACHERS:
        name, _, statistic = asked.partition(":")
        pick, size, options = TEACHERS[name]
        shape = (3, size, size)
        measurement = Measurement.model_validate({"statistic": statistic or "median"})
        model = Catalog().make("teachers", pick).build(shape, 10)
        found = survey(model, torch.randn(1, *shape), options)
        began = time.perf_counter()
        *_, table = tabulate(found, [block for block in found.block_costs if block], shape, measurement)
        assert isinstance(table, Table)
        seconds = time.perf_counter() - began
        model_of = Timed(found, {"latency": table})
        others = spread(found.space, NETWORKS + OTHERS)[NETWORKS:]
        costs = model_of.costs(others)
        teacher = table.teacher.nanoseconds
        print(f"\n{name}, {size} px, {measurement.statistic}: teacher {teacher / 1e6:.3f} ms; table in {seconds:.0f} s")
        print(f"{'macs':>14}{'predicted ms':>14}{'measured ms':>13}{'error':>9}{'by macs':>9}")
        by_work, errors = _by_macs(table, found), []
        for candidate, macs, predicted in zip(others, costs["macs"], costs["latency"], strict=True):
            ratio = compare(found.graft(candidate), found.teacher, shape, measurement).ratio
            measured = ratio * teacher
            error, naive = predicted / measured - 1, np.polyval(by_work, macs) / measured - 1
            errors.append((abs(error), abs(naive)))
            print(f"{macs:14,}{predicted / 1e6:14.3f}{measured / 1e6:13.3f}{error:9.1%}{naive:9.1%}")
        middle, largest = np.median(errors, axis=0), np.max(errors, axis=0)
        learned = model_of.timings["latency"]
        print(f"{'median of sizes':>41}{middle[0]:9.1%}{middle[1]:9.1%}")
        print(f"{'largest':>41}{largest[0]:9.1%}{largest[1]:9.1%}")
        print(f"held out of the table: {learned.error or 0:.1%}; channels at once: {learned.lane}")


def _by_macs(table: Table, found: Survey) -> NDArray[np.float64]:
    """A straight line through the table's networks: what one would guess from multiply-accumulates alone."""
    macs = found.costs([found.space.candidate(network.choices) for network in table.networks])["macs"]
    times = np.array([network.latency.nanoseconds for network in table.networks], dtype=np.float64)
    return np.polyfit(macs, times, 1, w=1 / times)


if __name__ == "__main__":
    main()
