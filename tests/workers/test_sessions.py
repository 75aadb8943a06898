from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import pytest

from search.budget import Budget, level_of
from search.plugins import Strategy
from search.projection import Projector
from search.rungs import Rungs
from search.spec import JobSpec
from search.strategies.random import Random
from search.strategies.wrappers import Distinct, Projected
from search.trial import State, Trial
from tests.search.chains import Chain
from tests.workers.scripted import Answer, Calm, by_width, spec
from workers.assignment import Assignment, Done, Failed, Lost, Outcome, Progress
from workers.backends.base import WAIT, Session
from workers.finalists import FinalistsSession
from workers.finals import Everyone
from workers.memory import MemoryArtifacts, MemoryLedger
from workers.ports import Claim
from workers.scores import Scores
from workers.sessions import SearchSession

CHAIN = Chain()


class Bench:
    """A ledger with one claimed job, and sessions on it."""

    def __init__(self, job: JobSpec | None = None, *limits: int) -> None:
        self.spec = job or spec()
        self.levels = [Budget({"macs": limit}) for limit in limits or (400,)]
        self.ledger = MemoryLedger()
        self.ledger.submit(self.spec)
        self.claim = self.claimed()
        self.watch = Calm()
        self.scores = Scores(MemoryArtifacts(), self.spec, CHAIN.space, "teacher", "digits")

    def claimed(self) -> Claim:
        claim = self.ledger.claim("tester", 1000)
        assert claim is not None
        return claim

    def session(self) -> SearchSession:
        projectors = (Projector(CHAIN, budget) for budget in self.levels)
        strategy: Strategy = Distinct(Projected(Random(Random.Options()), *projectors))
        strategy.open(CHAIN.space, 0)
        rungs = Rungs(self.spec.search.rungs, self.spec.search.reduction)
        return SearchSession(
            self.claim, self.ledger, self.scores, self.spec, CHAIN, strategy, rungs, self.levels, self.watch
        )

    def work(self, session: Session, answer: Answer, slots: int = 1) -> list[Assignment]:
        """Carries out everything, `slots` assignments at a time, oldest first."""
        given, under_way = [], []
        while True:
            while len(under_way) < slots and isinstance(assignment := session.next(), Assignment):
                under_way.append(assignment)
                given.append(assignment)
            if not under_way:
                assert session.next() is None
                return given
            done = under_way.pop(0)
            session.ended(done, answer(done))


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_nine_trials_are_proposed_and_the_best_third_promoted(slots: int) -> None:
    """Promotion does not wait, so one that was among the best for a while may go on too."""
    bench = Bench()
    given = bench.work(bench.session(), by_width, slots)
    stretches = Counter((assignment.start, assignment.stop) for assignment in given)
    assert stretches.keys() == {(0, 10), (10, 30)}
    assert stretches[0, 10] == 9
    assert 3 <= stretches[10, 30] <= 5
    trials = bench.ledger.trials(bench.claim.job_id)
    best = sorted(trials, key=lambda trial: -trial.scores[0].accuracy)[:3]
    assert all(trial.state is State.COMPLETED for trial in best)


def test_a_promoted_trial_goes_on_from_its_own_checkpoint() -> None:
    bench = Bench()
    given = bench.work(bench.session(), by_width)
    wrote = {assignment.trial: assignment.write for assignment in given if assignment.start == 0}
    for assignment in given:
        assert assignment.read == (wrote[assignment.trial] if assignment.start else None)
        assert not assignment.fresh


def test_concluding_stops_those_left_behind_and_names_the_finalists() -> None:
    bench = Bench()
    session = bench.session()
    bench.work(session, by_width)
    (finalists,) = session.conclude()
    trials = bench.ledger.trials(bench.claim.job_id)
    completed = sum(len(trial.scores) == 2 for trial in trials)
    assert Counter(trial.state for trial in trials) == {State.COMPLETED: completed, State.STOPPED: 9 - completed}
    assert all(trial.reason == "not promoted beyond rung 0" for trial in trials if trial.state is State.STOPPED)
    best = sorted((t for t in trials if t.state is State.COMPLETED), key=lambda t: -t.scores[-1].accuracy)
    assert [trial.id for trial in finalists] == [trial.id for trial in best[:2]]


def test_a_search_of_two_still_reaches_the_last_rung() -> None:
    bench = Bench(spec(search={"trials": 2, "rungs": [10, 30], "strategy": {"name": "random"}}))
    given = bench.work(bench.session(), by_width, slots=2)
    assert [assignment.stop for assignment in given] == [10, 10, 30]


def test_a_failed_trial_is_not_tried_again() -> None:
    bench = Bench()

    def first_fails(assignment: Assignment) -> Done | Failed:
        if assignment.number == 0:
            return Failed(code="NON_FINITE", message="the loss became nan at step 3")
        answer = by_width(assignment)
        assert isinstance(answer, Done)
        return answer

    given = bench.work(bench.session(), first_fails)
    assert [assignment.number for assignment in given].count(0) == 1
    failed = bench.ledger.trials(bench.claim.job_id)[0]
    assert failed.state is State.FAILED
    assert failed.reason == "NON_FINITE: the loss became nan at step 3"


def test_a_lost_trial_is_given_out_again_three_times_at_most() -> None:
    bench = Bench(spec(search={"trials": 1, "rungs": [10], "strategy": {"name": "random"}}))
    given = bench.work(bench.session(), lambda _: Lost(message="the worker died"))
    assert [assignment.trial for assignment in given] == [given[0].trial] * 3
    (trial,) = bench.ledger.trials(bench.claim.job_id)
    assert trial.state is State.FAILED
    assert trial.reason.startswith("INFRASTRUCTURE_EXHAUSTED: 3 machines died")


def test_while_something_is_under_way_the_end_is_not_announced() -> None:
    bench = Bench(spec(search={"trials": 1, "rungs": [10], "strategy": {"name": "random"}}))
    session = bench.session()
    first = session.next()
    assert isinstance(first, Assignment)
    assert session.next() is WAIT
    session.ended(first, Lost(message="the worker died"))
    again = session.next()
    assert isinstance(again, Assignment)
    assert again.trial == first.trial


def taken_over(bench: Bench, kill_after: int) -> Sequence[Trial]:
    """All trials of a job of nine whose first driver died with one assignment under way; nothing is scored twice."""
    session, carried_out = bench.session(), Counter[tuple[str, int]]()
    for _ in range(kill_after):
        assignment = session.next()
        assert isinstance(assignment, Assignment)
        carried_out[assignment.trial, assignment.stop] += 1
        session.ended(assignment, by_width(assignment))
    session.next()
    bench.ledger.release(bench.claim)
    bench.claim = bench.claimed()
    for assignment in bench.work(bench.session(), by_width):
        carried_out[assignment.trial, assignment.stop] += 1
    assert max(carried_out.values()) == 1
    trials = bench.ledger.trials(bench.claim.job_id)
    assert len(trials) == 9
    return trials


@pytest.mark.parametrize("kill_after", range(12))
def test_a_driver_that_takes_over_scores_nothing_twice(kill_after: int) -> None:
    """The first driver dies with one assignment under way; the second goes on from the record."""
    trials = taken_over(Bench(), kill_after)
    best = sorted(trials, key=lambda trial: -trial.scores[0].accuracy)[:3]
    assert all(trial.state is State.COMPLETED for trial in best)


def test_progress_is_noted_once_a_second_and_shows_life() -> None:
    bench = Bench()
    session = bench.session()
    assignment = session.next()
    assert isinstance(assignment, Assignment)
    for step in range(5):
        session.progress(assignment, Progress(step=step, loss=1.0))
    notes = [event for event in bench.ledger.events(bench.claim.job_id) if event.kind == "PROGRESS"]
    assert len(notes) == 1
    assert bench.watch.signs == 5


class TestLevels:
    """Three levels of the chain. Its projections onto the tightest are but four networks, so nine trials are enough."""

    LIMITS = (600, 400, 200)

    def bench(self, trials: int = 9) -> Bench:
        search = {"trials": trials, "rungs": [10, 30], "reduction": 3, "strategy": {"name": "random"}}
        return Bench(spec(search=search, budget={"macs": list(self.LIMITS)}), *self.LIMITS)

    def test_they_are_served_in_turn_and_each_trial_belongs_to_the_tightest_it_fits(self) -> None:
        bench = self.bench()
        bench.work(bench.session(), by_width)
        trials = bench.ledger.trials(bench.claim.job_id)
        assert len(trials) == 9
        for trial in trials:
            assert trial.cost["macs"] <= self.LIMITS[trial.number % 3]
        own = Counter(level_of(bench.levels, trial.cost) for trial in trials)
        assert sum(own.values()) == 9
        assert own[2] >= 3, "the tightest level has its own three at least"

    @pytest.mark.parametrize("slots", [1, 3])
    def test_trials_are_promoted_within_their_level(self, slots: int) -> None:
        """Wide networks score best, so one ranking over all would promote the loosest level alone."""
        bench = self.bench()
        bench.work(bench.session(), by_width, slots)
        groups: dict[int, list[Trial]] = {0: [], 1: [], 2: []}
        for trial in bench.ledger.trials(bench.claim.job_id):
            groups[level_of(bench.levels, trial.cost)].append(trial)
        for group in groups.values():
            best = sorted(group, key=lambda trial: -trial.scores[0].accuracy)[: len(group) // 3]
            assert best
            assert all(trial.state is State.COMPLETED for trial in best)

    def test_a_level_of_one_trial_still_reaches_the_last_rung(self) -> None:
        bench = self.bench(trials=3)
        bench.work(bench.session(), by_width)
        assert {trial.state for trial in bench.ledger.trials(bench.claim.job_id)} == {State.COMPLETED}

    def test_the_finalists_of_a_level_are_the_best_of_all_that_fit_it(self) -> None:
        bench = self.bench()
        session = bench.session()
        bench.work(session, lambda assignment: narrow(by_width(assignment)))
        groups = session.conclude()
        trials = bench.ledger.trials(bench.claim.job_id)
        assert len(groups) == 3
        for budget, finalists in zip(bench.levels, groups, strict=True):
            assert len(finalists) == 2
            assert all(budget.holds(trial.cost) for trial in finalists)
            fitting = [trial for trial in trials if trial.cost["macs"] <= budget.limits["macs"]]
            best = sorted(fitting, key=lambda trial: (-trial.rung, -trial.scores[-1].accuracy))[:2]
            assert [trial.id for trial in finalists] == [trial.id for trial in best]
        everyone = Everyone(groups)({})
        assert len(everyone) == len({trial.id for trial in everyone}) < 6, "narrow ones are finalists of several levels"

    @pytest.mark.parametrize("kill_after", [0, 1, 5, 8, 11])
    def test_a_driver_that_takes_over_goes_on_in_the_same_turn(self, kill_after: int) -> None:
        trials = taken_over(self.bench(), kill_after)
        assert all(trial.cost["macs"] <= self.LIMITS[trial.number % 3] for trial in trials)

    def test_a_level_with_one_student_does_not_end_the_search(self) -> None:
        search = {"trials": 9, "rungs": [10], "strategy": {"name": "random"}}
        bench = Bench(spec(search=search), 400, SMALLEST)
        bench.work(bench.session(), by_width)
        trials = bench.ledger.trials(bench.claim.job_id)
        assert len(trials) == 9
        assert sum(trial.cost["macs"] == SMALLEST for trial in trials) == 1


SMALLEST = int(CHAIN.costs_of(CHAIN.space.array([CHAIN.space.least()]))["macs"][0])


def narrow(outcome: Outcome) -> Done:
    """The same answer with the order turned round: narrow networks score well."""
    assert isinstance(outcome, Done)
    return outcome.model_copy(update={"accuracy": 1 - outcome.accuracy})


class TestFinalists:
    def finalists(self, bench: Bench) -> Callable[[], FinalistsSession]:
        session = bench.session()
        bench.work(session, by_width)
        wanted = Everyone(session.conclude())
        return lambda: FinalistsSession(bench.claim, bench.ledger, bench.scores, bench.spec, wanted, bench.watch)

    def test_each_is_trained_in_stretches_of_one_cosine(self) -> None:
        bench = Bench()
        make = self.finalists(bench)
        given = bench.work(make(), by_width, slots=2)
        first = given[0].trial
        walked = [(a.start, a.stop, a.fresh) for a in given if a.trial == first]
        assert walked == [(0, 20, True), (20, 40, False), (40, 50, False)]
        assert {a.cosine for a in given} == {(0, 50)}
        assert len(given) == 6

    def test_the_best_on_validation_wins(self) -> None:
        bench = Bench()
        session = self.finalists(bench)()
        bench.work(session, by_width)
        ranked, failed = session.conclude()
        assert [result.accuracy for result in ranked] == sorted((r.accuracy for r in ranked), reverse=True)
        assert failed == {}

    def test_a_taken_over_finalist_goes_on_from_its_last_checkpoint(self) -> None:
        bench = Bench()
        make = self.finalists(bench)
        session = make()
        first = session.next()
        assert isinstance(first, Assignment)
        bench.scores.artifacts.put(first.write, b"weights")
        again = next(a for a in bench.work(make(), by_width) if a.trial == first.trial)
        assert (again.start, again.read, again.fresh) == (20, first.write, False)

    def test_one_that_fails_leaves_the_field_to_the_other(self) -> None:
        bench = Bench()
        session = self.finalists(bench)()
        loser: list[str] = []

        def first_fails(assignment: Assignment) -> Done | Failed:
            loser.append(assignment.trial)
            if assignment.trial == loser[0]:
                return Failed(code="NON_FINITE", message="nan")
            answer = by_width(assignment)
            assert isinstance(answer, Done)
            return answer

        bench.work(session, first_fails)
        ranked, failed = session.conclude()
        assert len(ranked) == 1
        assert failed == {loser[0]: "NON_FINITE: nan"}

    def test_lost_stretches_are_repeated_from_their_start(self) -> None:
        bench = Bench()
        session = self.finalists(bench)()
        first = session.next()
        assert isinstance(first, Assignment)
        session.progress(first, Progress(step=15, loss=1.0))
        session.ended(first, Lost(message="the worker died"))
        again = session.next()
        assert again == first

    def test_who_is_wanted_later_is_trained_later(self) -> None:
        bench = Bench()
        session = bench.session()
        bench.work(session, by_width)
        (finalists,) = session.conclude()

        def one_by_one(known: Mapping[str, float | None]) -> list[Trial]:
            return finalists[: len(known) + 1]

        def make() -> FinalistsSession:
            return FinalistsSession(bench.claim, bench.ledger, bench.scores, bench.spec, one_by_one, bench.watch)

        given = bench.work(make(), by_width, slots=2)
        assert [assignment.trial for assignment in given] == [trial.id for trial in finalists for _ in range(3)]
