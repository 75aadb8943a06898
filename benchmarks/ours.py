"""
What the search does, piece by piece, so that the worth of each piece can be measured.

The library of a teacher is made once and kept; the CPU seconds that it took are counted in every cell that uses it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from benchmarks.final import SCHEDULE, Compute, Found, Method, Options
from benchmarks.rivals import even, order, trained
from benchmarks.teachers import Bench, home
from search.budget import Budget
from search.datasets.arrays import exclusive
from search.distillers.hinton import Hinton
from search.elastic import Draw, Elastic
from search.library import Entry, Librarian, Library, Lot, harm_table, lot_key, lots
from search.space import Candidate
from search.spec import ElasticSpec, LibrarySpec
from search.starts import starts
from search.training import Pupil, Stretch, train
from workers.artifacts import FolderArtifacts

STARTS = 8


def planned(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The default: optima of the plan and even widths, weights from the library, trained briefly, the best longer."""
    shelf, candidates = _planned(bench, budget, compute)
    with compute.timed():
        students = [(at, shelf.library.graft(one)) for at, one in enumerate(candidates)]
    first, second = options.rungs
    short = [(at, *trained(student, bench, seed, (0, first), compute)) for at, student in students]
    short.sort(key=lambda row: order((row[1], row[2])))
    longer = [
        (at, *trained(one, bench, seed, (first, second), compute)) for at, one, _ in short[: max(1, len(short) // 3)]
    ]
    at, student, _ = min(longer, key=lambda row: order((row[1], row[2])))
    uniform = even(bench, budget)
    return Found(student, "even widths" if candidates[at] == uniform else f"optimum {at}")


def plan_alone(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The first optimum, with the teacher's weights, sliced."""
    _, candidates = _planned(bench, budget, compute, 1)
    return Found(bench.survey.graft(candidates[0]))


def plan_and_library(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The first optimum, with weights from the library."""
    shelf, candidates = _planned(bench, budget, compute, 1)
    return Found(shelf.library.graft(candidates[0]))


def uniform_and_library(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """Even widths, with weights from the library."""
    shelf = _shelf(bench, compute)
    return Found(shelf.library.graft(even(bench, budget)))


def uniform_and_elastic(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """Even widths, with weights from an elastic student that was trained around them and at random."""
    uniform = even(bench, budget)
    return Found(_elastic(bench, budget, [uniform], seed, compute).graft(uniform))


def plan_and_elastic(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The first optimum, with weights from an elastic student that was trained around the optima and at random."""
    _, candidates = _planned(bench, budget, compute)
    return Found(_elastic(bench, budget, candidates, seed, compute).graft(candidates[0]))


OURS: Mapping[str, Method] = {
    "planned": planned,
    "plan, sliced": plan_alone,
    "plan, library": plan_and_library,
    "plan, elastic": plan_and_elastic,
    "uniform, library": uniform_and_library,
    "uniform, elastic": uniform_and_elastic,
}


@dataclass(frozen=True)
class Shelf:
    """A teacher's library."""

    harms: Mapping[Lot, float]
    library: Library


def _planned(bench: Bench, budget: Budget, compute: Compute, count: int = STARTS) -> tuple[Shelf, list[Candidate]]:
    shelf = _shelf(bench, compute)
    with compute.timed():
        table = harm_table(bench.survey.space, shelf.harms)
        found = starts(bench.survey, [budget], table, max(count, 2))
    return shelf, [start.candidate for start in found][:count]


def _shelf(bench: Bench, compute: Compute) -> Shelf:
    """The library as it is kept, or made now by one thread."""
    spec, survey = LibrarySpec(), bench.survey
    wanted = lots(survey.space, spec)
    keys = {lot: lot_key(lot, bench.result.weights, bench.recipe.info.key, spec) for lot in wanted}
    artifacts, told = FolderArtifacts(home() / "library"), home() / "library" / f"{min(keys.values())}.json"
    told.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(told.with_suffix(".lock")):
        if not told.exists():
            began, librarian = time.process_time(), Librarian(survey, bench.train, bench.validation, spec)
            for lot in wanted:
                artifacts.put(keys[lot], librarian.learn(lot).pack())
            told.write_text(json.dumps({"seconds": time.process_time() - began, "lots": len(wanted)}))
    compute.prepared = json.loads(told.read_text())["seconds"]
    compute.seconds += compute.prepared
    entries = {lot: Entry.unpack(artifacts.get(key)) for lot, key in keys.items()}
    harms = {lot: entry.harm for lot, entry in entries.items()}
    return Shelf(harms, Library(survey, harms, entries.__getitem__))


def _elastic(bench: Bench, budget: Budget, centres: list[Candidate], seed: int, compute: Compute) -> Elastic:
    spec = ElasticSpec()
    with compute.timed(), torch.random.fork_rng(devices=[]):
        elastic = Elastic(bench.survey, Draw(bench.survey, [budget], centres, spec.focus, seed))
        source, stretch = replace(bench.train, seed=seed), Stretch(0, spec.steps, (0, spec.steps))
        for _ in train(Pupil(elastic), source, Hinton(Hinton.Options()), spec.training, stretch):
            compute.samples += SCHEDULE.batch_size
    return elastic
