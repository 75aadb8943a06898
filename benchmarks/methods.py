"""
Methods of distillation beside each other: what each paper claims, tried at this scale.

    python -m benchmarks.methods                      # all parts, two hours of one core; what is known is skipped
    python -m benchmarks.methods --part srm --seed 0  # some of it
    python -m benchmarks.methods --table              # the tables, of what is known

`srm`: a small MobileNet, begun at random, learns from a small ResNet on `cluttered_digits`: softened outputs
(`hinton`), hints (`fitnet`), attention, and sparse representation matching, each with the same steps in all; two of
them with twice as many too.
`sequence`: a small ResNet of half the width, begun at random, with a curriculum by its own snapshots, beside random
order, reversed order and the teacher's, with the same phases; accuracy at a quarter, half and all of the steps.
`hints`: even widths within 10 % of the macs of a small ResNet, cut from it, with features mimicked beside softened
outputs; and softened outputs alone for about as many seconds.

Rows are lines of `methods.jsonl` in STILLHOUSE_BENCH_HOME (see benchmarks.teachers). Accuracy is on the test set.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from benchmarks.rivals import even
from benchmarks.rows import append, lines
from benchmarks.teachers import Bench, kept
from search.catalog import Catalog
from search.course import Material
from search.quality import quality
from search.spec import Pick, Schedule
from search.teachers.small import SmallMobileNet, SmallResNet
from search.training import Pupil, Stretch, train

STEPS = {"srm": 1500, "sequence": 800, "hints": 500}
AS_LONG = "hinton, as many seconds"
LONGER = {AS_LONG: 1060, "srm, 3000": 3000, "hinton, 3000": 3000}
"""
Methods with steps of their own: 1,060 without the teacher's forward pass take as long as 500 with it; of 3,000, the
last stage of SRM has the 1,500 of plain distillation.
"""
SEEDS = (0, 1, 2)
SCHEDULE = Schedule()
SOFT = {"alpha": 0.75}
METHODS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "srm": {
        "hinton": {"name": "hinton", "options": SOFT},
        "fitnet": {"name": "fitnet", "options": SOFT},
        "attention": {"name": "attention", "options": SOFT},
        "srm": {"name": "srm", "options": SOFT},
        "srm, 3000": {"name": "srm", "options": SOFT},
        "hinton, 3000": {"name": "hinton", "options": SOFT},
    },
    "sequence": {
        "hinton": {"name": "hinton", "options": {"alpha": 0.9}},
        "student": {"name": "sequence", "options": {"order": "student"}},
        "random": {"name": "sequence", "options": {"order": "random"}},
        "reversed": {"name": "sequence", "options": {"order": "reversed"}},
        "teacher": {"name": "sequence", "options": {"order": "teacher"}},
    },
    "hints": {
        "hinton": {"name": "hinton"},
        AS_LONG: {"name": "hinton"},
        "feature, 10": {"name": "feature", "options": {"weight": 10}},
        "fitnet, 10": {"name": "fitnet", "options": {"weight": 10}},
        "fitnet, 30": {"name": "fitnet", "options": {"weight": 30}},
        "fitnet, 100": {"name": "fitnet", "options": {"weight": 100}},
    },
}


@dataclass(frozen=True)
class Row:
    """`accuracy` and `kl` after each of `at` steps; `seconds` of CPU, scoring left out."""

    part: str
    method: str
    seed: int
    at: Sequence[int]
    accuracy: Sequence[float]
    kl: Sequence[float]
    seconds: float


def student_of(part: str, bench: Bench, seed: int) -> nn.Module:
    if part == "hints":
        return bench.survey.graft(even(bench, bench.budget(macs="10%")))
    info = bench.recipe.info
    maker = SmallMobileNet(SmallMobileNet.Options()) if part == "srm" else SmallResNet(SmallResNet.Options(width=12))
    return maker.build(info.shape, len(info.classes), seed=seed)


def measure(part: str, method: str, seed: int) -> Row:
    bench, steps = kept("small_resnet", "cluttered_digits"), LONGER.get(method, STEPS[part])
    source, pupil = replace(bench.train, seed=seed), Pupil(student_of(part, bench, seed))
    distiller = Catalog().make("distillers", Pick.model_validate(METHODS[part][method]))
    material = Material.of(bench.survey, source, bench.spec.search.views, steps, seed=seed)
    at = [steps // 4, steps // 2, steps] if part == "sequence" else [steps]
    accuracy, kl, seconds = list[float](), list[float](), 0.0
    for start, stop in zip([0, *at[:-1]], at, strict=True):
        began = time.process_time()
        for _ in train(pupil, source, distiller, SCHEDULE, Stretch(start, stop, (0, steps)), material):
            pass
        seconds += time.process_time() - began
        found = quality(pupil.model, bench.test)
        accuracy.append(found.accuracy)
        kl.append(found.kl)
    return Row(part, method, seed, at, accuracy, kl, seconds)


def known() -> list[Row]:
    return [Row(**json.loads(line)) for line in lines("methods")]


def record(row: Row) -> None:
    append("methods", json.dumps(asdict(row)))


def tables() -> Iterator[str]:
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in known():
        groups[row.part, row.method].append(row)
    for part, methods in METHODS.items():
        marks = next((rows[0].at for (of, _), rows in groups.items() if of == part), ())
        if marks:
            steps = " | ".join(f"accuracy at {mark}, %" for mark in marks) if len(marks) > 1 else "accuracy, %"
            yield f"\n| {part}: method | seeds | {steps} | KL at the end | CPU s |"
            yield "|---|---:|" + "---:|" * (len(marks) + 2)
        for method in methods:
            rows = groups.get((part, method))
            if rows:
                cells = [_spread([100 * row.accuracy[mark] for row in rows], 2) for mark in range(len(marks))]
                cells += [_spread([row.kl[-1] for row in rows], 3), f"{fmean(row.seconds for row in rows):.0f}"]
                yield f"| {method} | {len(rows)} | {' | '.join(cells)} |"


def _spread(values: Sequence[float], digits: int) -> str:
    mean = f"{fmean(values):.{digits}f}"
    return f"{mean} ± {stdev(values):.{digits}f}" if len(values) > 1 else mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--method", nargs="+")
    parser.add_argument("--seed", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="print what is known, run nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    done = {(row.part, row.method, row.seed) for row in known()}
    cells = [(part, method, seed) for seed in asked.seed for part in asked.part for method in METHODS[part]]
    for part, method, seed in [] if asked.table else cells:
        if (part, method, seed) not in done and (not asked.method or method in asked.method):
            row = measure(part, method, seed)
            record(row)
            print(part, method, seed, [f"{one:.2%}" for one in row.accuracy], f"{row.seconds:.0f} s", flush=True)
    print("\n".join(tables()))


if __name__ == "__main__":
    main()
