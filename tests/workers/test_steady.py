"""With `search.deterministic` the same seed gives the same search, whoever is quickest and whoever dies."""

from __future__ import annotations

import random
from typing import Any

import pytest

from search.budget import Budget, level_of
from search.plugins import Strategy
from search.rungs import Rungs
from search.strategies.random import Random
from search.strategies.tpe import Tpe
from search.strategies.wrappers import Distinct
from search.trial import State, Trial
from tests.search.chains import Chain
from tests.workers.scripted import by_width, spec
from tests.workers.test_sessions import Bench
from workers.assignment import Assignment, Failed, Outcome
from workers.steady import SteadySession

CHAIN = Chain()
LIMITS = (10_000, 600)
SEARCH: dict[str, Any] = {"trials": 20, "rungs": [10, 30, 60], "reduction": 2, "deterministic": True}
STRATEGIES: dict[str, Strategy] = {
    "random": Random(Random.Options()),
    "tpe": Tpe(Tpe.Options(startup=8)),
}


def session(bench: Bench, strategy: str) -> SteadySession:
    made = Distinct(STRATEGIES[strategy])  # the loosest level holds whatever is proposed
    made.open(CHAIN.space, 0)
    rungs = Rungs(bench.spec.search.rungs, bench.spec.search.reduction)
    return SteadySession(
        bench.claim, bench.ledger, bench.scores, bench.spec, CHAIN, made, rungs, bench.levels, bench.watch
    )


def answer(assignment: Assignment) -> Outcome:
    """Every seventh trial fails, at the first rung or at the second."""
    fails = assignment.number % 7 == 3 and assignment.start == (10 if assignment.number == 3 else 0)
    return Failed(code="NON_FINITE", message="nan") if fails else by_width(assignment)


def searched(strategy: str, slots: int, order: int, deaths: tuple[int, ...] = ()) -> tuple[object, ...]:
    """Trials and finalists of a search in which answers come in any order; a driver dies after so many of them."""
    bench, rng = Bench(spec(search=SEARCH, budget={"macs": list(LIMITS)}), *LIMITS), random.Random(order)
    for death in (*deaths, None):
        walking, under_way, ended = session(bench, strategy), list[Assignment](), 0
        while death is None or ended < death:
            while len(under_way) < slots and isinstance(found := walking.next(), Assignment):
                under_way.append(found)
            if not under_way:
                break
            done = under_way.pop(rng.randrange(len(under_way)))
            walking.ended(done, answer(done))
            ended += 1
        if death is not None:
            bench.ledger.release(bench.claim)
            bench.claim = bench.claimed()
    finalists = walking.conclude()
    trials = bench.ledger.trials(bench.claim.job_id)
    return trials_told(trials), [[trial.number for trial in group] for group in finalists]


def trials_told(trials: object) -> list[tuple[object, ...]]:
    assert isinstance(trials, list)
    return [(trial.number, trial.key, trial.origin, trial.state, trial.scores) for trial in trials]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_record_is_the_same_with_any_number_of_workers(strategy: str) -> None:
    alone = searched(strategy, slots=1, order=0)
    for slots in (1, 2, 5):
        for order in range(3):
            assert searched(strategy, slots, order) == alone


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("deaths", [(1,), (7, 2), (13,), (9, 9, 6)])
def test_the_record_is_the_same_when_drivers_die(strategy: str, deaths: tuple[int, ...]) -> None:
    assert searched(strategy, slots=3, order=1, deaths=deaths) == searched(strategy, slots=1, order=0)


def test_each_rung_takes_the_better_half_of_its_level() -> None:
    bench = Bench(spec(search=SEARCH, budget={"macs": list(LIMITS)}), *LIMITS)
    bench.work(session(bench, "random"), by_width, slots=4)
    groups: dict[int, list[Trial]] = {0: [], 1: []}
    for trial in bench.ledger.trials(bench.claim.job_id):
        groups[level_of([Budget({"macs": limit}) for limit in LIMITS], trial.cost)].append(trial)
    assert all(groups.values())
    for group in groups.values():
        for rung in (0, 1):
            here = [trial for trial in group if trial.rung > rung]
            gone_on = [trial for trial in here if trial.rung > rung + 1]
            assert len(gone_on) == max(1, len(here) // 2)
            left = [trial for trial in here if trial.rung == rung + 1]
            assert min(t.scores[rung].rank for t in gone_on) >= max((t.scores[rung].rank for t in left), default=(0, 0))
        assert any(trial.state is State.COMPLETED for trial in group)
