"""
The quality of students, method by method: what is left of a teacher under a budget after the same final distillation.

    python -m benchmarks.quality                                      # every cell, hours; what is known is skipped
    python -m benchmarks.quality --budget macs=10% --method uniform   # some of them
    python -m benchmarks.quality --table                              # the tables, of what is known

Every cell of teacher, dataset, budget, method, final steps and seed is one line of JSON in `quality.jsonl` of
STILLHOUSE_BENCH_HOME (see benchmarks.teachers), written when it is done; several programs may work at once on
different ones. `seconds` are CPU seconds of one thread. In the rows `uniform, same seconds` uniform widths have what
our search of that cell and seed used spent on a longer final instead: the rival of equal compute; `of 3 budgets` counts
a third of what serves every budget of the teacher.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean, stdev

import torch

from benchmarks.final import STEPS, Compute, Method, Options, final
from benchmarks.ours import OURS
from benchmarks.rivals import RIVALS, uniform
from benchmarks.rows import append, lines
from benchmarks.teachers import Bench, kept

TEACHERS = ("small_resnet", "small_mobilenet")
DATASETS = ("cluttered_digits", "shapes")
BUDGETS = ("macs=50%", "macs=20%", "macs=10%", "params=10%")
SEEDS = (0, 1, 2)
EQUAL = {
    f"uniform, same seconds{of}": budgets for of, budgets in (("", 1), (" of 3 budgets", 3), (" of 10 budgets", 10))
}
METHODS: Mapping[str, Method] = {**RIVALS, **OURS, **dict.fromkeys(EQUAL, uniform)}
"""In an order in which the last, which rest on what ours used, find it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One row to be filled. `steps` is the length of the final."""

    teacher: str
    dataset: str
    budget: str
    method: str
    steps: int
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """
    What was found. `accuracy` and `kl` are on the test set, both None where a method has no student; `samples` and
    `seconds` are those of the search, `final_steps` and `final_seconds` those of the final.
    """

    cell: Cell
    accuracy: float | None
    kl: float | None
    macs: int
    params: int
    samples: int
    seconds: float
    final_steps: int
    final_seconds: float
    note: str
    prepared: float = 0.0
    """Those of `seconds` that served every budget of the teacher."""

    def line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, line: str) -> Row:
        fields = json.loads(line)
        return cls(**{**fields, "cell": Cell(**fields["cell"])})


def known() -> dict[Cell, Row]:
    return {row.cell: row for row in map(Row.read, lines("quality"))}


def record(row: Row) -> None:
    append("quality", row.line())


def measure(bench: Bench, cell: Cell, options: Options) -> Row | None:
    """Runs a method and the final of its student; None when it rests on rows that are not there yet."""
    metric, _, limit = cell.budget.partition("=")
    budget, compute, steps = bench.budget(**{metric: limit}), Compute(), cell.steps
    if cell.method in EQUAL:
        more = _more_steps(cell)
        if more is None:
            return None
        steps += more
    found = METHODS[cell.method](bench, budget, cell.seed, compute, options)
    if found.student is None:
        return Row(cell, None, None, 0, 0, compute.samples, compute.seconds, 0, 0.0, found.note)
    reached = final(found.student, bench, cell.seed, steps)
    assert budget.holds(reached.cost), (cell, reached.cost)
    return Row(
        cell,
        reached.quality.accuracy,
        reached.quality.kl,
        reached.cost["macs"],
        reached.cost["params"],
        compute.samples,
        compute.seconds,
        steps,
        reached.compute.seconds,
        found.note,
        compute.prepared,
    )


def _more_steps(cell: Cell) -> int | None:
    """How many steps of uniform widths cost what our search did, by the pace at which these were trained before."""
    rows = known()
    ours, even = (rows.get(replace(cell, method=method)) for method in ("planned", "uniform"))
    if ours is None or even is None:
        return None
    seconds = ours.seconds - ours.prepared * (1 - 1 / EQUAL[cell.method])
    return round(seconds / (even.final_seconds / even.final_steps))


def tables(rows: Iterable[Row]) -> Iterator[str]:
    """Markdown, line by line: a table for every teacher, dataset, budget and length of the final."""

    def place(row: Row) -> tuple[int, int, int, int]:
        cell = row.cell
        return TEACHERS.index(cell.teacher), DATASETS.index(cell.dataset), BUDGETS.index(cell.budget), cell.steps

    def method(row: Row) -> int:
        return list(METHODS).index(row.cell.method)

    for _, group in itertools.groupby(sorted(rows, key=lambda row: (*place(row), method(row))), key=place):
        found = list(group)
        cell = found[0].cell
        yield f"### {cell.teacher} on {cell.dataset}, {cell.budget.replace('=', ' at ')}, final of {cell.steps} steps"
        yield ""
        yield "| method | seeds | accuracy, % | KL | macs | params | images trained on | search, CPU s | |"
        yield "|---|---:|---:|---:|---:|---:|---:|---:|---|"
        yield from (_line(name, list(of)) for name, of in itertools.groupby(found, key=lambda row: row.cell.method))
        yield ""


def _line(method: str, rows: Sequence[Row]) -> str:
    notes = "; ".join(dict.fromkeys(row.note for row in rows if row.note))
    students = [row for row in rows if row.accuracy is not None]
    samples, seconds = fmean(row.samples for row in rows), fmean(row.seconds for row in rows)
    if not students:
        return f"| {method} | 0 of {len(rows)} | - | - | - | - | {samples:,.0f} | {seconds:,.0f} | {notes} |"
    seeds = f"{len(students)} of {len(rows)}" if len(students) < len(rows) else f"{len(rows)}"
    accuracy = _spread([100 * row.accuracy for row in students if row.accuracy is not None], 2)
    kl = _spread([row.kl for row in students if row.kl is not None], 3)
    macs, params = (fmean(values) for values in zip(*((row.macs, row.params) for row in students), strict=True))
    costs = f"{macs:,.0f} | {params:,.0f} | {samples:,.0f} | {seconds:,.0f}"
    return f"| {method} | {seeds} | {accuracy} | {kl} | {costs} | {notes} |"


def _spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n")[1])
    parser.add_argument("--teacher", nargs="+", choices=TEACHERS, default=TEACHERS)
    parser.add_argument("--dataset", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--budget", nargs="+", choices=BUDGETS, default=BUDGETS)
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seed", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="length of the final")
    parser.add_argument("--samples", type=int, default=Options().samples, help="images a rival's search may train on")
    parser.add_argument("--table", action="store_true", help="print what is known, run nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    benches: dict[tuple[str, str], Bench] = {}
    cells = itertools.product(asked.teacher, asked.dataset, asked.budget, asked.seed, asked.method)
    wanted = [
        Cell(teacher, dataset, budget, method, asked.steps, seed) for teacher, dataset, budget, seed, method in cells
    ]
    for cell in wanted:
        if asked.table or cell in known():
            continue
        pair = cell.teacher, cell.dataset
        if pair not in benches:
            benches[pair] = kept(*pair)
        row = measure(benches[pair], cell, Options(samples=asked.samples))
        if row is not None:
            record(row)
            print(row.line(), flush=True)
    rows = known()
    print("\n".join(tables(rows[cell] for cell in wanted if cell in rows)))


if __name__ == "__main__":
    main()
