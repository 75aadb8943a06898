"""
Widths that are learned: what is left of a MobileNet at half its FLOPs and, separately, at 5.2 times fewer parameters.

    python -m benchmarks.structure                                     # every cell, hours; what is known is skipped
    python -m benchmarks.structure --budget flops=50% --method uniform # some of them
    python -m benchmarks.structure --table                             # the tables, of what is known

The ratios are those of "Compact CNN Structure Learning by Knowledge Distillation" (arXiv 2104.09191), of which our
`structure` is a reconstruction; its students are said to do better than the network they come from. Every student here
is trained on as many images as its teacher was, all told: what a method trains on while it decides is taken off the
final. `seconds` are CPU seconds of one thread; those of the library that `planned` rests on are its own, and it trains
no whole network. Distillation is the same for all: 0.9 KL at T = 4 and 0.1 cross-entropy, and else as in
benchmarks.final. Every row is a line of JSON in `structure.jsonl` of STILLHOUSE_BENCH_HOME (see benchmarks.teachers),
written when it is done; several programs may work at once on different ones.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev

import torch

from benchmarks.final import SCHEDULE, Compute, Found, Method, Options, distil
from benchmarks.ours import planned
from benchmarks.pruners import pruned_by_magnitude
from benchmarks.quality import Cell, Row
from benchmarks.rivals import uniform
from benchmarks.rows import append, lines
from benchmarks.teachers import Bench, kept
from search.budget import Budget
from search.costs.measure import count
from search.course import Material
from search.distillers.hinton import Hinton
from search.quality import quality
from search.space import Candidate
from search.spec import StructureSpec
from search.structure import Learned, Learning
from search.training import Pupil

TEACHER = "small_mobilenet"
DATASETS = ("cluttered_digits", "shapes")
BUDGETS = ("flops=50%", "params=19.2%")
SEEDS = (0, 1, 2)
LEARNED = 0.4
"""Share of a student's training in which widths are learned."""
TEACH = Hinton(Hinton.Options(alpha=0.9))


@dataclass(frozen=True, slots=True)
class Whole(Options):
    steps: int = 0
    """Of all that a student is trained, the learning of its widths included."""


def structure(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """Widths learned in one training, and the weights that were learned with them."""
    learning, pupil, chosen = _learned(bench, budget, seed, compute, options)
    with compute.timed():
        student = Learned(bench.survey, [learning.snapshot(pupil)]).graft(chosen)
    return Found(student, _note(learning, pupil))


def widths_alone(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The same widths with the teacher's weights, sliced."""
    learning, pupil, chosen = _learned(bench, budget, seed, compute, options)
    return Found(bench.survey.graft(chosen), _note(learning, pupil))


METHODS: Mapping[str, Method] = {
    "uniform": uniform,
    "torch-pruning L2": pruned_by_magnitude,
    "planned": planned,
    "structure": structure,
    "structure, sliced": widths_alone,
}
USUAL = ("uniform", "torch-pruning L2", "planned", "structure")


def _learned(
    bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options
) -> tuple[Learning, Pupil, Candidate]:
    assert isinstance(options, Whole)
    steps = round(LEARNED * options.steps)
    with compute.timed():
        spec = StructureSpec(steps=steps)
        learning = Learning(bench.survey, bench.survey, [budget], TEACH, spec)
        pupil = learning.begin()
        source = replace(bench.train, seed=seed)
        material = Material.of(bench.survey, bench.train, bench.spec.search.views, steps)
        for _ in learning.walk(pupil, source, steps, material):
            compute.samples += spec.training.batch_size
        return learning, pupil, learning.candidate(pupil, 0)


def _note(learning: Learning, pupil: Pupil) -> str:
    """How near to its limit the learning came by itself."""
    note = learning.note(pupil)
    return ", ".join(f"{value:,} {metric} alive" for metric, value in note.cost.items())


def length(bench: Bench) -> int:
    """How many steps the teacher was trained for."""
    teacher, images = bench.spec.teacher, bench.recipe.dataset.sizes()["train"]
    return teacher.epochs * (images // teacher.training.batch_size)


def measure(bench: Bench, cell: Cell) -> Row:
    """Runs a method and trains its student for the rest of `cell.steps`."""
    metric, _, limit = cell.budget.partition("=")
    budget, compute, last = bench.budget(**{metric: limit}), Compute(), Compute()
    found = METHODS[cell.method](bench, budget, cell.seed, compute, Whole(steps=cell.steps))
    if found.student is None:
        return Row(cell, None, None, 0, 0, compute.samples, compute.seconds, 0, 0.0, found.note)
    steps = cell.steps - compute.samples // SCHEDULE.batch_size
    distil(found.student, bench, cell.seed, steps, last, teach=TEACH)
    cost, reached = count(found.student, bench.example), quality(found.student, bench.test)
    assert budget.holds(cost), (cell, cost)
    return Row(
        cell,
        reached.accuracy,
        reached.kl,
        cost["macs"],
        cost["params"],
        compute.samples,
        compute.seconds,
        steps,
        last.seconds,
        found.note,
        compute.prepared,
    )


def known() -> dict[Cell, Row]:
    return {row.cell: row for row in map(Row.read, lines("structure"))}


def record(row: Row) -> None:
    append("structure", row.line())


def tables(rows: Iterable[Row], teachers: Mapping[str, float]) -> Iterator[str]:
    """Markdown, line by line; `teachers` are their accuracies by dataset."""

    def place(row: Row) -> tuple[int, int, int]:
        return DATASETS.index(row.cell.dataset), BUDGETS.index(row.cell.budget), row.cell.steps

    def method(row: Row) -> str:
        return row.cell.method

    for _, group in itertools.groupby(sorted(rows, key=place), key=place):
        found = list(group)
        cell = found[0].cell
        teacher = 100 * teachers[cell.dataset]
        budget = cell.budget.replace("=", " at ")
        yield f"### {cell.dataset}, {budget}, {cell.steps} steps; the teacher has {teacher:.2f} %"
        yield ""
        yield "| method | seeds | accuracy, % | above teacher | KL | macs | params | deciding, CPU s | final, CPU s |"
        yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
        found.sort(key=lambda row: list(METHODS).index(method(row)))
        yield from (_line(name, list(of), teacher) for name, of in itertools.groupby(found, key=method))
        yield ""


def _line(method: str, rows: Sequence[Row], teacher: float) -> str:
    students = [row for row in rows if row.accuracy is not None]
    if not students:
        return f"| {method} | 0 of {len(rows)} | - | - | - | - | - | - | - |"
    accuracy = [100 * row.accuracy for row in students if row.accuracy is not None]
    kl = [row.kl for row in students if row.kl is not None]
    spread = f" ± {stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
    macs, params, deciding, last = (
        fmean(values)
        for values in zip(*((row.macs, row.params, row.seconds, row.final_seconds) for row in students), strict=True)
    )
    return (
        f"| {method} | {len(students)} | {fmean(accuracy):.2f}{spread} | {fmean(accuracy) - teacher:+.2f} "
        f"| {fmean(kl):.3f} | {macs:,.0f} | {params:,.0f} | {deciding:,.0f} | {last:,.0f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.structure", description=__doc__.split("\n")[1])
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--budget", nargs="+", choices=BUDGETS, default=BUDGETS)
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=USUAL)
    parser.add_argument("--seed", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, help="of a student's whole training; without it the teacher's own")
    parser.add_argument("--table", action="store_true", help="print what is known, run nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begun = {cell.dataset for cell in known()}  # a table trains no teacher of whose students nothing is known
    benches = {name: kept(TEACHER, name) for name in asked.dataset if name in begun or not asked.table}
    wanted = [
        Cell(TEACHER, dataset, budget, method, asked.steps or length(benches[dataset]), seed)
        for dataset, seed, budget, method in itertools.product(benches, asked.seed, asked.budget, asked.method)
    ]
    for cell in wanted:
        if not asked.table and cell not in known():
            record(row := measure(benches[cell.dataset], cell))
            print(row.line(), flush=True)
    rows, accuracies = known(), {name: bench.result.accuracy or 0.0 for name, bench in benches.items()}
    print("\n".join(tables((rows[cell] for cell in wanted if cell in rows), accuracies)))


if __name__ == "__main__":
    main()
