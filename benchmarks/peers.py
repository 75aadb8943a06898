"""
Peers that teach each other, without a teacher: `pcl` against plain training and against deep mutual learning.

    python -m benchmarks.peers            # what is not known yet, and the table; eleven minutes
    python -m benchmarks.peers --table    # the table, of what is known

A `small_resnet` of depth 1 and width 16 on `cluttered_digits`, as it was initialised by a seed, trained by every method
for the same number of steps of the same images in the same order; the test set sees what would be deployed. Training
peers costs more than training one network, so plain training is also given the time: `PLAIN_LONG` times the steps.
Every row is a line of JSON in `peers.jsonl` of STILLHOUSE_BENCH_HOME, written when it is done; `seconds` are CPU
seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.stats import t

from benchmarks.final import Compute
from benchmarks.rows import append, lines
from benchmarks.teachers import home
from search.batches import Cached, Normalise, views
from search.catalog import Catalog
from search.costs.measure import count
from search.course import Material
from search.files import Files
from search.plugins import Distiller
from search.quality import EVALUATION_BATCH, quality
from search.recipe import Recipe, prepare
from search.spec import Pick, Schedule, read_spec
from search.training import Pupil, Stretch, recalibrate, train

STEPS = 600
PLAIN_LONG = 4
SEEDS = (0, 1, 2)
VIEWS = 4
MUTUAL = {"shared": False, "ensemble": False, "ema": 0, "temperature": 1, "ramp": 1e-9}
METHODS: Mapping[str, tuple[Pick, int]] = {
    "plain": (Pick(name="supervised"), 1),
    f"plain, {PLAIN_LONG}x the steps": (Pick(name="supervised"), PLAIN_LONG),
    "mutual learning": (Pick(name="pcl", options=dict(MUTUAL)), 1),
    "pcl": (Pick(name="pcl", options={"ema": 0.99}), 1),
}
"""A distiller, and how many times `STEPS` it trains."""
RIVALS = ("plain", f"plain, {PLAIN_LONG}x the steps", "mutual learning")
"""Whom `pcl` is to beat."""


@dataclass(frozen=True, slots=True)
class Row:
    method: str
    seed: int
    steps: int
    accuracy: float
    """On the test set, of the network that would be deployed."""
    macs: int
    seconds: float


def known() -> list[Row]:
    rows = [Row(**json.loads(line)) for line in lines("peers")]
    return [row for row in rows if row.method in METHODS and row.steps == STEPS * METHODS[row.method][1]]


def record(row: Row) -> None:
    append("peers", json.dumps(asdict(row)))


def recipe(seed: int) -> Recipe:
    document: dict[str, Any] = {
        "teacher": {"name": "small_resnet", "options": {"depth": 1, "width": 16}, "epochs": 0},
        "dataset": {"name": "cluttered_digits"},
        "budget": {"macs": "100%"},
        "distill": {"name": "pcl"},
        "search": {"seed": seed, "strategy": {"name": "random"}, "weights": "slice"},
    }
    return prepare(read_spec(document), Files(home() / "cache"))


@cache
def data(seed: int) -> tuple[Cached, Cached]:
    """The views to train on, and the test set; nobody's logits."""
    made = recipe(seed)

    def untaught(images: Any, labels: Any) -> Cached:
        logits = np.zeros((len(labels), len(made.info.classes)), dtype=np.float32)
        return Cached(images, labels, logits, Normalise(made.info), seed)

    split, test = views(made.dataset.split("train"), made.info, VIEWS, seed), made.dataset.split("test")
    return untaught(split.images, split.labels), untaught(test.images, test.labels)


def measure(method: str, seed: int) -> Row:
    pick, times = METHODS[method]
    made, (source, test), steps = recipe(seed), data(seed), STEPS * times
    found = made.survey(made.build_teacher())
    student = found.graft(found.space.full())
    distiller: Distiller = Catalog().make("distillers", pick)
    material = Material.of(found, source, VIEWS, steps, seed=seed)
    compute = Compute()
    with compute.timed():
        for _ in train(Pupil(student), source, distiller, Schedule(), Stretch(0, steps, (0, steps)), material):
            pass
    recalibrate(student, source, batches=4, batch_size=EVALUATION_BATCH)
    reached = quality(student, test, taught=False)
    return Row(method, seed, steps, reached.accuracy, count(student, material.first())["macs"], compute.seconds)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Markdown, line by line."""
    yield "| method | steps | macs | test accuracy | CPU s |"
    yield "|---|---:|---:|---:|---:|"
    for method in METHODS:
        own = [row for row in rows if row.method == method]
        if own:
            seconds = fmean(row.seconds for row in own)
            yield f"| {method} | {own[0].steps:,} | {own[0].macs:,} | {_spread(_accuracies(own))} | {seconds:.0f} |"
    yield ""
    for rival in RIVALS:
        verdict = _verdict(rows, rival)
        if verdict:
            yield verdict


def _accuracies(rows: Sequence[Row]) -> list[float]:
    return [row.accuracy for row in rows]


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{fmean(values):.2%}" + (f" ± {stdev(values):.2%}" if len(values) > 1 else "")


def _verdict(rows: Sequence[Row], rival: str) -> str:
    """Seed by seed; better or worse where zero is outside of the 95 % interval of the mean difference (Student's t)."""
    by_seed = {(row.method, row.seed): row.accuracy for row in rows}
    gains = [
        by_seed["pcl", seed] - by_seed[rival, seed] for seed in SEEDS if {("pcl", seed), (rival, seed)} <= set(by_seed)
    ]
    if len(gains) < 2:
        return ""
    mean, half = fmean(gains), float(t.ppf(0.975, len(gains) - 1)) * stdev(gains) / len(gains) ** 0.5
    said = "better" if mean > half else "worse" if mean < -half else "no difference shown"
    return f"- pcl against {rival}: {100 * mean:+.2f} ± {100 * half:.2f} points over {len(gains)} seeds: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--seed", type=int, action="append", choices=SEEDS)
    parser.add_argument("--method", action="append", choices=list(METHODS))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    cells = [(method, seed) for seed in chosen.seed or SEEDS for method in chosen.method or METHODS]
    for method, seed in [] if chosen.table else cells:
        if (method, seed) not in {(row.method, row.seed) for row in known()}:
            record(row := measure(method, seed))
            print(f"{method}, seed {seed}: {row.accuracy:.2%}, {row.seconds:.0f} s", flush=True)
    print("\n".join(table(known())))


if __name__ == "__main__":
    main()
