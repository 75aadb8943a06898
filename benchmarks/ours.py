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
from torch import nn

from benchmarks.final import SCHEDULE, Compute, Found, Method, Options
from benchmarks.rivals import even, order, trained
from benchmarks.teachers import Bench, home
from search.budget import Budget
from search.distillers.hinton import Hinton
from search.elastic import Draw, Elastic
from search.files import exclusive
from search.library import Entry, Librarian, Library, Lot, harm_table, lot_key, lots
from search.plugins import Start
from search.projection import Projector
from search.quality import Quality
from search.space import Candidate
from search.spec import ElasticSpec, LibrarySpec
from search.starts import starts
from search.strategies.planned import Planned
from search.strategies.wrappers import Distinct, Projected, Started
from search.training import Pupil, Stretch, train
from search.trial import Score, Trial
from workers.artifacts import FolderArtifacts

STARTS = 4
"""As a job has."""


def planned(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The default strategy, weights from the library: as many trials as the random search has, on the same rungs."""
    shelf, found = _planned(bench, budget, compute)
    first, second = options.rungs
    trials = max(1, int(options.samples / SCHEDULE.batch_size / (first + (second - first) / 3)))
    with compute.timed():
        strategy = Distinct(Started(Projected(Planned(Planned.Options()), Projector(bench.survey, budget))))
        strategy.open(bench.survey.space, seed, found)
    short: list[tuple[Trial, nn.Module, Quality]] = []
    while len(short) < trials:
        with compute.timed():
            proposal = strategy.ask()
            if proposal is None:
                break
            student = shelf.library.graft(proposal.candidate)
        reached = trained(student, bench, seed, (0, first), compute)[1]
        trial = Trial(
            id="",
            number=len(short),
            key=proposal.candidate.key,
            choices=proposal.candidate.as_dict(),
            origin=proposal.origin.as_dict(),
            cost={},
            scores=(Score(0, first, reached.accuracy, reached.kl, 0.0),),
            extra=proposal.extra,
        )
        strategy.tell(trial)
        short.append((trial, student, reached))
    short.sort(key=lambda row: order(row[1:]))
    promoted = short[: max(1, len(short) // 3)]
    longer = [(trial, *trained(student, bench, seed, (first, second), compute)) for trial, student, _ in promoted]
    trial, student, _ = min(longer, key=lambda row: order(row[1:]))
    kinds = {start.candidate.key: start.kind for start in found}
    return Found(student, kinds.get(trial.key, "child"))


def plan_alone(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The first optimum, with the teacher's weights, sliced."""
    _, found = _planned(bench, budget, compute, 2)
    return Found(bench.survey.graft(found[0].candidate))


def plan_and_library(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The first optimum, with weights from the library."""
    shelf, found = _planned(bench, budget, compute, 2)
    return Found(shelf.library.graft(found[0].candidate))


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
    _, found = _planned(bench, budget, compute)
    centres = [start.candidate for start in found]
    return Found(_elastic(bench, budget, centres, seed, compute).graft(centres[0]))


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


def _planned(bench: Bench, budget: Budget, compute: Compute, count: int = STARTS) -> tuple[Shelf, list[Start]]:
    """The first start is the optimum."""
    shelf = _shelf(bench, compute)
    with compute.timed():
        return shelf, starts(bench.survey, [budget], harm_table(bench.survey.space, shelf.harms), count)


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
