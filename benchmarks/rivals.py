"""
What a user would do otherwise: rivals of the search, each run for real.

Each is given a teacher with its cached outputs, a budget and a seed, and hands over a student that is ready for the
final (`benchmarks.final`), with an account of what it has used until then. Those that train during their search do so
on about `Options.samples` images. Where a package is missing, or nothing within the budget is found, a rival says so.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from benchmarks.final import SCHEDULE, Compute, Found, Method, Options, distil, looked_at
from benchmarks.pruners import fastnas, pruned_by_magnitude, pruned_by_scale
from benchmarks.teachers import Bench
from benchmarks.tuned import tune_tpe
from search.budget import Budget
from search.projection import Projector
from search.quality import Quality
from search.scratch import Scratch
from search.space import Candidate
from search.strategies.random import Random
from search.strategies.wrappers import Distinct, Projected


def uniform(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """Even widths, projected to the budget; the teacher's weights, sliced."""
    with compute.timed():
        return Found(bench.survey.graft(even(bench, budget)))


def scratch(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """The same network with random weights."""
    with compute.timed():
        return Found(Scratch(bench.survey, seed).graft(even(bench, budget)))


def random(bench: Bench, budget: Budget, seed: int, compute: Compute, options: Options) -> Found:
    """Random candidates projected to the budget, trained briefly; a third of them for longer; the best of those."""
    first, second = options.rungs
    trials = max(1, int(options.samples / SCHEDULE.batch_size / (first + (second - first) / 3)))
    with compute.timed():
        strategy = Distinct(Projected(Random(Random.Options()), Projector(bench.survey, budget)))
        strategy.open(bench.survey.space, seed)
        proposals = [found.candidate for _ in range(trials) if (found := strategy.ask()) is not None]
        students = [bench.survey.graft(candidate) for candidate in proposals]
    short = sorted((trained(student, bench, seed, (0, first), compute) for student in students), key=order)
    promoted = [student for student, _ in short[: max(1, len(short) // 3)]]
    longer = [trained(student, bench, seed, (first, second), compute) for student in promoted]
    return Found(min(longer, key=order)[0], f"{len(short)} trials")


RIVALS: Mapping[str, Method] = {
    "uniform": uniform,
    "torch-pruning L2": pruned_by_magnitude,
    "torch-pruning BN": pruned_by_scale,
    "FastNAS": fastnas,
    "random": random,
    "Tune + TPE": tune_tpe,
    "scratch": scratch,
}


def even(bench: Bench, budget: Budget) -> Candidate:
    """Even widths."""
    return Projector(bench.survey, budget).project(bench.survey.space.full())


def trained(
    student: nn.Module, bench: Bench, seed: int, rung: tuple[int, int], compute: Compute
) -> tuple[nn.Module, Quality]:
    """In place, from one length to the next."""
    distil(student, bench, seed, rung[1], compute, start=rung[0])
    return student, looked_at(student, bench, compute)


def order(trained: tuple[nn.Module, Quality]) -> tuple[float, float]:
    """Sorts the better one first."""
    return -trained[1].accuracy, trained[1].kl
