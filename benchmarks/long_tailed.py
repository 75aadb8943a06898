"""
Balanced distillation on long-tailed data, beside plain distillation and cross-entropy.

    python -m benchmarks.long_tailed                    # every cell, ten minutes; what is known is skipped
    python -m benchmarks.long_tailed --imbalance 100    # some of them
    python -m benchmarks.long_tailed --table            # the table, of what is known

As in the paper, a teacher learns from the thinned training set by cross-entropy, and a student of the same
architecture, which begins at random, from that teacher's last weights. All train on the same eight fixed views for as
many steps; only the loss differs. `ce` is the teacher itself. `kd` is `bkd` with all weights 1, so the same
cross-entropy beside the same softened part: CE + 4 KL at T = 2. `deferred` has the weights on in the last fifth only.

Every cell of imbalance, seed and method is one line of JSON in `long_tailed.jsonl` of STILLHOUSE_BENCH_HOME (see
benchmarks.teachers), written when it is done.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from statistics import fmean, stdev

import numpy as np
import torch
from torch import nn

from benchmarks.teachers import home
from search.batches import Cached, Normalise, views
from search.catalog import Catalog
from search.course import Material
from search.datasets.long_tailed import LongTailed
from search.distillers.bkd import Bkd
from search.distillers.supervised import Supervised
from search.files import Files, published
from search.plugins import Distiller
from search.quality import accuracy, outputs, shots
from search.spec import Pick, Schedule
from search.teachers.small import SmallResNet
from search.teachers.weights import load_weights, save_weights
from search.training import Pupil, Stretch, train

IMBALANCES = (50, 100)
SEEDS = (0, 1, 2)
METHODS: Mapping[str, Distiller] = {
    "ce": Supervised(Supervised.Options()),
    "kd": Bkd(Bkd.Options(beta=0)),
    "bkd": Bkd(Bkd.Options()),
    "bkd, deferred": Bkd(Bkd.Options(deferred=0.8)),
}
"""The first makes the teacher of the others."""
STEPS = 600
VIEWS = 8
NETWORK = SmallResNet(SmallResNet.Options(width=16, depth=1))
SCHEDULE = Schedule(learning_rate=0.1)
GROUPS = ("many", "medium", "few")


@dataclass(frozen=True, slots=True)
class Cell:
    imbalance: int
    seed: int
    method: str


@dataclass(frozen=True, slots=True)
class Row:
    """On the test set, which has as many images of every class: shares 0..1. `seconds` are of one CPU, of training."""

    cell: Cell
    accuracy: float
    shots: Mapping[str, float]
    seconds: float

    @classmethod
    def read(cls, line: str) -> Row:
        fields = json.loads(line)
        return cls(**{**fields, "cell": Cell(**fields["cell"])})


@dataclass
class Bench:
    """The data of one imbalance, and the networks that learn from it."""

    imbalance: int
    dataset: LongTailed = field(init=False)

    def __post_init__(self) -> None:
        options = {"of": {"name": "cluttered_digits"}, "imbalance": self.imbalance}
        files = Files(home() / "cache")
        self.dataset = Catalog().make("datasets", Pick(name="long_tailed", options=options), files=files)

    @cached_property
    def train(self) -> Cached:
        """All views; without a teacher's logits."""
        info = self.dataset.info()
        viewed = views(self.dataset.split("train"), info, VIEWS, 0)
        logits = np.zeros((len(viewed), len(info.classes)), dtype=np.float32)
        return Cached(viewed.images, viewed.labels, logits, Normalise(info))

    def network(self, seed: int) -> nn.Module:
        info = self.dataset.info()
        return NETWORK.build(info.shape, len(info.classes), seed=seed)

    def measure(self, cell: Cell) -> Row:
        """Trains the network of a cell; its teacher must have been measured before."""
        info, weights = self.dataset.info(), home() / f"long_tailed-{cell.imbalance}-{cell.seed}.safetensors"
        first, source = cell.method == "ce", replace(self.train, seed=cell.seed)
        model = self.network(cell.seed if first else cell.seed + 100)
        teacher = self.network(cell.seed)
        if not first:
            load_weights(teacher, weights)
            source = replace(source, logits=outputs(teacher, source.images, source.normalise))
        began = time.process_time()
        material = Material(source, VIEWS, teacher.eval(), (), STEPS)
        for _ in train(Pupil(model), source, METHODS[cell.method], SCHEDULE, Stretch(0, STEPS, (0, STEPS)), material):
            pass
        seconds = time.process_time() - began
        if first:
            with published(weights) as draft:
                draft.write_bytes(save_weights(model))
        test = self.dataset.split("test")
        answer = outputs(model, test.images, Normalise(info))
        return Row(cell, accuracy(answer, test.labels), shots(answer, test.labels, self.dataset.counts()), seconds)


def known() -> dict[Cell, Row]:
    path = home() / "long_tailed.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {row.cell: row for row in map(Row.read, lines)}


def record(row: Row) -> None:
    with (home() / "long_tailed.jsonl").open("a") as file:
        file.write(json.dumps(asdict(row)) + "\n")


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Markdown: mean and standard deviation over seeds."""
    yield "| imbalance | method | seeds | accuracy, % | many-shot | medium-shot | few-shot | CPU s |"
    yield "|---:|---|---:|---:|---:|---:|---:|---:|"

    def place(row: Row) -> tuple[int, int]:
        return row.cell.imbalance, list(METHODS).index(row.cell.method)

    for (imbalance, _), group in itertools.groupby(sorted(rows, key=place), key=place):
        found = list(group)
        reached = [_spread([row.accuracy for row in found])]
        reached += [_spread([row.shots[name] for row in found]) for name in GROUPS]
        seconds = fmean(row.seconds for row in found)
        yield f"| {imbalance} | {found[0].cell.method} | {len(found)} | {' | '.join(reached)} | {seconds:.0f} |"


def _spread(shares: list[float]) -> str:
    spread = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * fmean(shares):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_tailed", description=__doc__.split("\n")[1])
    parser.add_argument("--imbalance", nargs="+", type=int, choices=IMBALANCES, default=IMBALANCES)
    parser.add_argument("--seed", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="print what is known, run nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cells = itertools.product(asked.seed, asked.imbalance, METHODS)
    wanted = [Cell(imbalance, seed, method) for seed, imbalance, method in cells]
    benches = {imbalance: Bench(imbalance) for imbalance in asked.imbalance}
    for cell in wanted:
        if not asked.table and cell not in known():
            row = benches[cell.imbalance].measure(cell)
            record(row)
            print(json.dumps(asdict(row)), flush=True)
    rows = known()
    print("\n".join(table(rows[cell] for cell in wanted if cell in rows)))


if __name__ == "__main__":
    main()
