"""
How fast networks are surveyed, cut and costed, beside torch-pruning.

    python -m benchmarks.costs

Costs: our polynomials against building the same candidates and counting them, with our own counter and with
torch-pruning's `count_ops_and_params`; ours must agree with our counter to the unit. The building is our graft in
every column. Surveys: until every site is found, tried on a copy and costed, against
`DependencyGraph.build_dependency`, which finds the coupled channels alone. Times are of one thread's computing, because
other work may share the machine, or of the clock on the wall where so said; ratios are what travels between machines.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.utils import count_ops_and_params

from search.catalog import Catalog
from search.costs.measure import count
from search.space import Candidate
from search.spec import Pick, SpaceSpec
from search.surgery import Survey, survey


def zoo(builder: str) -> Pick:
    return Pick(name="torchvision", options={"builder": builder})


TEACHERS = {
    "small_resnet": (Pick(name="small_resnet"), 32, SpaceSpec(divisor=2)),
    "small_mobilenet": (Pick(name="small_mobilenet"), 32, SpaceSpec(divisor=2)),
    "resnet50": (zoo("resnet50"), 224, SpaceSpec()),
    "densenet201": (zoo("densenet201"), 224, SpaceSpec()),
    "shufflenet_v2_x1_0": (zoo("shufflenet_v2_x1_0"), 224, SpaceSpec()),
}
BUILT = 10
COSTED = 100_000


def main() -> None:
    torch.set_num_threads(1)
    known = {}
    print("| network | px | sites | survey, CPU s | wall s | torch-pruning's tracing, CPU s | wall s | graft, ms |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, (pick, size, options) in TEACHERS.items():
        model = Catalog().make("teachers", pick).build((3, size, size), 10).eval()
        example = torch.randn(1, 3, size, size)
        found, ours = _timed(lambda m=model, x=example, o=options: survey(m, x, o))
        theirs = _traced(model, example)
        known[name] = found, example
        graft = graft_milliseconds(found)
        print(f"| {name} | {size} | {len(found.space.sites)} | {ours} | {theirs} | {graft:.0f} |", flush=True)
    print()
    print("| network | px | costed/s | graft + our count/s | ratio | graft + torch-pruning's count/s | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, (found, example) in known.items():
        print(f"| {name} | {example.shape[-1]} | {_rates(found, example)} |", flush=True)


def _timed(work: Callable[[], Survey]) -> tuple[Survey, str]:
    cpu, wall = time.thread_time(), time.perf_counter()
    found = work()
    return found, f"{time.thread_time() - cpu:.1f} | {time.perf_counter() - wall:.1f}"


def _traced(model: nn.Module, example: Tensor) -> str:
    cpu, wall = time.thread_time(), time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example)
    except Exception as error:  # whatever it meets
        return f"{type(error).__name__} | -"
    return f"{time.thread_time() - cpu:.1f} | {time.perf_counter() - wall:.1f}"


def samples(found: Survey, number: int) -> list[Candidate]:
    rng = np.random.default_rng(0)
    return [found.space.sample(rng) for _ in range(number)]


def graft_milliseconds(found: Survey) -> float:
    """The median over some students of the CPU time that cutting takes."""
    times = []
    for candidate in samples(found, 11):
        began = time.thread_time()
        found.graft(candidate)
        times.append(time.thread_time() - began)
    return 1000 * float(np.median(times))


def _rates(found: Survey, example: Tensor) -> str:
    candidates = samples(found, BUILT)
    began = time.thread_time()
    counted = [count(found.graft(candidate), example) for candidate in candidates]
    ours = BUILT / (time.thread_time() - began)
    costs = found.costs(candidates)
    for metric, values in costs.items():
        assert values.tolist() == [network[metric] for network in counted], metric
    began = time.thread_time()
    for candidate in candidates:
        count_ops_and_params(found.graft(candidate), example)
    theirs = BUILT / (time.thread_time() - began)
    rows = np.tile(found.space.array(candidates), (COSTED // BUILT, 1))
    began = time.thread_time()
    found.costs_of(rows)
    costed = len(rows) / (time.thread_time() - began)
    return f"{costed:,.0f} | {ours:.1f} | {costed / ours:,.0f} | {theirs:.1f} | {costed / theirs:,.0f}"


if __name__ == "__main__":
    main()
