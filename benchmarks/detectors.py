"""
Detectors distilled at several levels: `hierarchical` against a detector's own losses, and each level alone.

    python -m benchmarks.detectors            # what is not known yet, and the table; an hour of one core
    python -m benchmarks.detectors --table    # the table, of what is known

Teacher: Faster R-CNN with a pyramid on a residual network of three stages, as thin as two cores can train, on `scenes`.
Student: even widths within a sixth of its parameters, weights cut from it, trained by every method for the same
steps of the same images in the same order. Rows are lines of `detectors.jsonl` in STILLHOUSE_BENCH_HOME (see
benchmarks.teachers); all numbers are of the test set, `seconds` of one thread's CPU, judging left out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any

import torch

from benchmarks.rivals import even
from benchmarks.rows import append, lines
from benchmarks.teachers import Bench, kept_by
from search.catalog import Catalog
from search.costs.measure import count
from search.course import Material
from search.quality import EVALUATION_BATCH, outputs, seen
from search.spec import JobSpec, Pick, Schedule, read_spec
from search.training import Pupil, Stretch, recalibrate, train

SHARE = "16.6%"
STEPS = 600
SEEDS = (0, 1, 2)
SCHEDULE = Schedule(batch_size=8, learning_rate=0.02)
OFF = {"pyramid": 0, "region": 0, "embedding": 0}
METHODS: Mapping[str, Pick] = {
    "own losses": Pick(name="supervised"),
    "+ pyramid": Pick(name="hierarchical", options={**OFF, "pyramid": 1}),
    "+ region": Pick(name="hierarchical", options={**OFF, "region": 1}),
    "+ embedding": Pick(name="hierarchical", options={**OFF, "embedding": 1}),
    "+ all": Pick(name="hierarchical"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """`map` and `ap50` 0..1, more is better; `miss_rate` 0..1, less is. The teacher's has no steps of its own."""

    method: str
    seed: int
    steps: int
    map: float
    ap50: float
    miss_rate: float
    params: int
    macs: int
    seconds: float


def spec() -> JobSpec:
    backbone = {"name": "small_resnet", "options": {"width": 24, "depth": 3}}
    return read_spec(
        {
            "task": "detection",
            "teacher": {
                "name": "detector",
                "options": {"family": "faster_rcnn", "backbone": backbone, "proposals": 64},
                "epochs": 10,
                "training": {"batch_size": 8, "learning_rate": 0.02},
            },
            "dataset": {"name": "scenes"},
            "budget": {"params": SHARE},
            "space": {"divisor": 2},
            "search": {"strategy": {"name": "uniform"}, "weights": "slice"},
            "distill": {"name": "hierarchical"},
        }
    )


def judged(bench: Bench, network: torch.nn.Module, method: str, seed: int, steps: int, seconds: float) -> Row:
    test, info = bench.test, bench.recipe.info
    found = seen(outputs(network, test.images, test.normalise), test.labels, info)
    cost = count(network, bench.example)
    return Row(method, seed, steps, found.map, found.ap50, found.miss_rate, cost["params"], cost["macs"], seconds)


def measure(bench: Bench, method: str, seed: int) -> Row:
    student = bench.survey.graft(even(bench, bench.budget(params=SHARE)))
    source, pupil = replace(bench.train, seed=seed), Pupil(student)
    distiller = Catalog().make("distillers", METHODS[method])
    material = Material.of(bench.survey, source, bench.spec.search.views, STEPS, seed=seed)
    began = time.process_time()
    for _ in train(pupil, source, distiller, SCHEDULE, Stretch(0, STEPS, (0, STEPS)), material):
        pass
    recalibrate(student, source, batches=bench.spec.search.calibration_batches, batch_size=EVALUATION_BATCH)
    return judged(bench, student, method, seed, STEPS, time.process_time() - began)


def known() -> list[Row]:
    return [Row(**json.loads(line)) for line in lines("detectors")]


def record(row: Row) -> None:
    append("detectors", json.dumps(asdict(row)))


def table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| trained by | seeds | mAP, % | AP50, % | miss rate, % | params | macs | CPU s |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for method in ("teacher", *METHODS):
        found = [row for row in rows if row.method == method]
        if found:
            cells = [_spread([100 * getattr(row, name) for row in found]) for name in ("map", "ap50", "miss_rate")]
            sizes = [f"{found[0].params / 1e3:,.0f} k", f"{found[0].macs / 1e6:,.1f} M"]
            seconds = f"{fmean(row.seconds for row in found):.0f}"
            yield f"| {method} | {len(found)} | {' | '.join([*cells, *sizes, seconds])} |"


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.1f} \u00b1 {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seed", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="print what is known, run nothing")
    asked: Any = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row.method, row.seed) for row in known() if row.steps in (0, STEPS)}
    if not asked.table:
        bench = kept_by(spec())
        if ("teacher", 0) not in done:
            record(judged(bench, bench.teacher, "teacher", 0, 0, 0.0))
        for method, seed in [(method, seed) for seed in asked.seed for method in asked.method]:
            if (method, seed) not in done:
                row = measure(bench, method, seed)
                record(row)
                print(
                    method, seed, f"mAP {row.map:.1%}, miss rate {row.miss_rate:.1%}, {row.seconds:.0f} s", flush=True
                )
    print("\n".join(table([row for row in known() if row.steps in (0, STEPS)])))


if __name__ == "__main__":
    main()
