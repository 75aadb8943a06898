"""Scores measured again with another seed, and what a job says of its own search by them."""

from __future__ import annotations

from typing import Any

import pytest

from search.rungs import Rungs
from search.trial import Trial
from tests.workers.scripted import by_width, spec
from tests.workers.test_sessions import Bench
from workers.assignment import Assignment, Done, Failed, Lost, Outcome
from workers.repeats import InTurn, RepeatsSession, chosen
from workers.scores import keep

SEARCH: dict[str, Any] = {"trials": 9, "rungs": [10, 30], "strategy": {"name": "random"}, "seed": 5}


def other_seed(assignment: Assignment) -> Done:
    found = by_width(assignment)
    assert isinstance(found, Done)
    return found.model_copy(update={"accuracy": found.accuracy + 0.01 * (assignment.seed - 5)})


@pytest.fixture
def searched() -> tuple[Bench, list[Trial]]:
    bench = Bench(spec(search=SEARCH))
    bench.work(bench.session(), other_seed)
    return bench, chosen([list(bench.ledger.trials(bench.claim.job_id))], Rungs((10, 30), 3), 2)


def session(bench: Bench, trials: list[Trial]) -> RepeatsSession:
    rungs = Rungs((10, 30), 3)
    return RepeatsSession(bench.claim, bench.ledger, bench.scores, bench.spec, trials, rungs, bench.watch)


def keeping(bench: Bench, assignment: Assignment) -> Outcome:
    done = other_seed(assignment)
    keep(bench.scores.artifacts, assignment.write, b"weights", done)
    return done


def test_the_best_of_the_last_rung_walk_all_rungs_again_with_another_seed(searched: tuple[Bench, list[Trial]]) -> None:
    bench, trials = searched
    assert len(trials) == 2
    assert all(trial.rung == 2 for trial in trials)
    repeating = session(bench, trials)
    given = bench.work(repeating, other_seed, slots=2)
    assert [(a.start, a.stop, a.cosine) for a in given] == [(0, 10, (0, 10))] * 2 + [(10, 30, (10, 30))] * 2
    assert {assignment.seed for assignment in given} == {6}
    assert {a.read for a in given if a.start} == {a.write for a in given if not a.start}
    for trial in trials:
        first, again = repeating.conclude()[trial.id]
        assert first == trial.scores[-1].accuracy
        assert again == pytest.approx(first + 0.01)


@pytest.mark.parametrize("walked", range(5))
def test_a_driver_that_takes_over_repeats_nothing(searched: tuple[Bench, list[Trial]], walked: int) -> None:
    bench, trials = searched
    first = session(bench, trials)
    for _ in range(walked):
        assignment = first.next()
        assert isinstance(assignment, Assignment)
        first.ended(assignment, keeping(bench, assignment))
    second = session(bench, trials)
    assert len(bench.work(second, lambda assignment: keeping(bench, assignment))) == 4 - walked
    assert second.conclude().keys() == {trial.id for trial in trials}


def test_they_follow_a_search_on_the_same_workers() -> None:
    bench = Bench(spec(search=SEARCH))
    repeats: list[RepeatsSession] = []

    def then() -> RepeatsSession:
        trials = chosen([list(bench.ledger.trials(bench.claim.job_id))], Rungs((10, 30), 3), 2)
        repeats.append(session(bench, trials))
        return repeats[0]

    given = bench.work(InTurn(bench.session(), then), lambda assignment: keeping(bench, assignment), slots=3)
    seeds = [assignment.seed for assignment in given]
    assert seeds == sorted(seeds)
    assert seeds.count(6) == 4
    assert len(repeats[0].conclude()) == 2
    again = then()
    assert again.settled
    assert again.conclude() == repeats[0].conclude()


def test_what_fails_or_is_lost_too_often_is_left_out(searched: tuple[Bench, list[Trial]]) -> None:
    bench, trials = searched

    def spoilt(assignment: Assignment) -> Outcome:
        fails = assignment.trial == trials[0].id
        return Failed(code="NON_FINITE", message="nan") if fails else Lost(message="the worker died")

    repeating = session(bench, trials)
    given = bench.work(repeating, spoilt)
    assert [assignment.trial for assignment in given] == [trials[0].id] + [trials[1].id] * 3
    assert repeating.conclude() == {}


def test_levels_take_turns(searched: tuple[Bench, list[Trial]]) -> None:
    bench, _ = searched
    trials = [trial for trial in bench.ledger.trials(bench.claim.job_id) if trial.rung == 2]
    one, *others = trials
    picked = chosen([others, [one]], Rungs((10, 30), 3), 2)
    assert picked[1] == one
    assert chosen([trials], Rungs((10, 30, 90), 3), 2) == []
