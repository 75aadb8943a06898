from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from search.budget import Budget
from search.catalog import BUILT_IN, Catalog
from search.part import Part
from search.plugins import Aiming, Proposal, Start, Strategy
from search.projection import Projector
from search.spec import Pick
from search.strategies.breeding import mutant
from search.strategies.random import Random
from search.strategies.wrappers import Distinct, Projected, Started
from search.trial import Score, State, Trial
from tests.search.chains import Chain

CHAIN = Chain()
SPACE = CHAIN.space


def scored(number: int, proposal: Proposal, accuracy: float, cost: Mapping[str, int] | None = None) -> Trial:
    return Trial(
        id=f"trial_{number}",
        number=number,
        key=proposal.candidate.key,
        choices=proposal.candidate.as_dict(),
        origin=proposal.origin.as_dict(),
        cost=cost or {},
        scores=(Score(0, 10, accuracy, 0.1, 0.1),),
        extra=proposal.extra,
    )


def wide_is_good(proposal: Proposal) -> float:
    choices = proposal.candidate.as_dict()
    return (choices["a"] + choices["b"] + choices["c"]) / 48


@pytest.fixture(params=sorted(BUILT_IN["strategies"]))
def strategy(request: pytest.FixtureRequest) -> Strategy:
    made: Strategy = Catalog().make("strategies", Pick(name=request.param))
    made.open(SPACE, seed=3)
    return made


class TestEveryStrategy:
    """The contract of `search.plugins.Strategy`, over all built-in strategies."""

    def test_it_proposes_candidates_of_the_space(self, strategy: Strategy) -> None:
        for number in range(2):
            proposal = strategy.ask()
            assert proposal is not None
            assert SPACE.candidate(proposal.candidate.as_dict()) == proposal.candidate
            strategy.tell(scored(number, proposal, 0.5))

    def test_the_same_seed_proposes_the_same(self, strategy: Strategy) -> None:
        twin = type(strategy)(type(strategy).Options())  # type: ignore[call-arg]
        twin.open(SPACE, seed=3)
        assert [strategy.ask() for _ in range(2)] == [twin.ask() for _ in range(2)]

    def test_it_may_be_asked_again_before_it_is_told(self, strategy: Strategy) -> None:
        assert [strategy.ask() is not None for _ in range(2)] == [True, True]

    def test_it_takes_a_failed_trial(self, strategy: Strategy) -> None:
        proposal = strategy.ask()
        assert proposal is not None
        strategy.tell(replace(scored(0, proposal, 0), scores=(), state=State.FAILED, reason="NON_FINITE"))
        assert strategy.ask() is not None

    def test_it_is_rebuilt_by_replay_and_does_not_repeat_itself(self, strategy: Strategy) -> None:
        distinct = Distinct(strategy)
        trials = []
        for number in range(2):
            proposal = distinct.ask()
            assert proposal is not None
            trials.append(scored(number, proposal, wide_is_good(proposal)))
            distinct.tell(trials[-1])
        rebuilt = Distinct(type(strategy)(type(strategy).Options()))  # type: ignore[call-arg]
        rebuilt.open(SPACE, seed=3)
        for trial in trials:
            rebuilt.tell(trial)
        proposal = rebuilt.ask()
        assert proposal is None or proposal.candidate.key not in {trial.key for trial in trials}


def test_uniform_proposes_the_teacher_first_and_then_takes_blocks_away() -> None:
    uniform = Catalog().make("strategies", Pick(name="uniform"))
    uniform.open(SPACE, seed=0)
    proposals = [uniform.ask() for _ in range(3)]
    assert proposals[0].candidate == SPACE.full()
    assert proposals[1].candidate == SPACE.candidate({**SPACE.full().as_dict(), "block": 0})
    assert proposals[2] is None


LEARNING = {"tpe": {}, "gp": {"startup": 6}, "nsga2": {"population": 8}, "evolution": {"pool": 8}, "planned": {}}


@pytest.mark.parametrize("name", sorted(LEARNING.keys() - {"gp"}))  # which takes its time
def test_it_learns_also_after_a_replay(name: str) -> None:
    """It comes to propose wider networks than chance where wide is good, though another process goes on half way."""
    values, trials, each = list[float](), list[Trial](), 20
    for half in range(2):
        strategy = Catalog().make("strategies", Pick(name=name, options=LEARNING[name]))
        strategy.open(SPACE, seed=1)
        for trial in trials:
            strategy.tell(trial)
        for number in range(half * each, half * each + each):
            proposal = strategy.ask()
            values.append(wide_is_good(proposal))
            trials.append(scored(number, proposal, values[-1]))
            strategy.tell(trials[-1])
    chance = 10 / 16  # mean width over full width of an even draw
    assert sum(values[-each + 2 :]) / (each - 2) > chance + 0.1


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", LEARNING)
def test_the_untrained_are_told_by_their_nearness_to_the_teacher(name: str) -> None:
    """Accuracies that say the contrary are not listened to."""
    strategy, values = Catalog().make("strategies", Pick(name=name, options=LEARNING[name])), list[float]()
    strategy.open(SPACE, seed=2)
    for number in range(12 if name == "gp" else 24):
        proposal = strategy.ask()
        values.append(wide_is_good(proposal))
        score = Score(0, 0, 1 - values[-1], 1 - values[-1], 0.1)
        strategy.tell(replace(scored(number, proposal, 0), scores=(score,)))
    latest = values[len(values) // 2 :]
    assert sum(latest) / len(latest) > 10 / 16 + 0.05


def test_tpe_is_told_its_own_proposal_and_only_the_score_of_the_first_rung() -> None:
    tpe = Catalog().make("strategies", Pick(name="tpe"))
    tpe.open(SPACE, seed=1)
    proposal = tpe.ask()
    trial = scored(0, replace(proposal, candidate=SPACE.least()), 0.25)
    tpe.tell(trial)
    tpe.tell(replace(trial, scores=(*trial.scores, Score(1, 30, 0.9, 0.1, 0.1))))
    (told,) = tpe._sampling._opened().trials
    assert told.value == 0.25
    assert {name: SPACE.by_name[name].choices[at] for name, at in told.params.items()} == proposal.origin.as_dict()


def test_generations_go_on_after_a_replay() -> None:
    def opened() -> Strategy:
        made: Strategy = Catalog().make("strategies", Pick(name="nsga2", options={"population": 4}))
        made.open(SPACE, seed=1)
        return made

    strategy, trials = opened(), list[Trial]()
    for number in range(10):
        proposal = strategy.ask()
        assert proposal is not None
        trials.append(scored(number, proposal, wide_is_good(proposal)))
        strategy.tell(trials[-1])
    assert [(trial.extra or {})["generation"] for trial in trials] == [0] * 4 + [1] * 4 + [2] * 2
    again = opened()
    for trial in trials:
        again.tell(trial)
    proposal = again.ask()
    assert proposal is not None
    assert proposal.extra == {"generation": 2}


def test_evolution_begins_with_the_even_widths_and_breeds_from_the_latest() -> None:
    evolution = Catalog().make("strategies", Pick(name="evolution", options={"pool": 4, "crossover": 0}))
    evolution.open(SPACE, seed=0)
    proposals = [evolution.ask() for _ in range(4)]
    assert proposals[0].candidate == SPACE.full()
    old = scored(0, proposals[0], 1.0)
    evolution.tell(old)
    latest = SPACE.candidate({"a": 4, "block": 1, "b": 4, "c": 4})
    for number, choice in enumerate((4, 8, 12, 16), start=1):
        candidate = SPACE.candidate({**latest.as_dict(), "c": choice})
        evolution.tell(scored(number, Proposal(candidate, candidate), 0.1))
    for _ in range(20):
        child = evolution.ask().candidate
        assert child["a"] + (child["b"] if child["block"] else 4) <= 8 + 8 + 8, "the full one has left the pool"


STARTS = (
    Start(SPACE.candidate({"a": 12, "block": 0, "b": 16, "c": 12}), 0, "optimum"),
    Start(SPACE.candidate({"a": 4, "block": 1, "b": 4, "c": 8}), 1, "optimum"),
    Start(SPACE.candidate({"a": 8, "block": 1, "b": 8, "c": 8}), 0, "uniform"),
)
LADDER = (Budget({"macs": 500}), Budget({"macs": 200}))


@pytest.mark.parametrize("name", sorted(BUILT_IN["strategies"]))
def test_starts_come_first_as_they_are_and_once(name: str) -> None:
    def opened() -> Started:
        made = Started(Projected(Catalog().make("strategies", Pick(name=name)), *(Projector(CHAIN, b) for b in LADDER)))
        made.open(SPACE, 5, STARTS)
        return made

    strategy = opened()
    proposals = [strategy.ask() for _ in STARTS]
    assert [found.candidate for found in proposals if found] == [start.candidate for start in STARTS]
    assert [found.level for found in proposals if found] == [0, 1, 0]
    again = opened()
    for number, found in enumerate(proposals[:2]):
        assert found is not None
        again.tell(scored(number, found, 0.5, {"macs": int(macs_of(found))}))
    assert again.ask() == proposals[2]


def macs_of(proposal: Proposal) -> int:
    return int(CHAIN.costs_of(SPACE.array([proposal.candidate]))["macs"][0])


def test_planned_breeds_around_the_best_of_each_level_and_serves_all() -> None:
    around = {"pool": 2, "sites": 1, "crossover": 0, "random": 0}
    planned = Catalog().make("strategies", Pick(name="planned", options=around))
    assert planned.needs_plan
    strategy = Distinct(Started(Projected(planned, *(Projector(CHAIN, budget) for budget in LADDER))))
    assert strategy.needs_plan
    strategy.open(SPACE, 5, STARTS)
    for number in range(3):
        proposal = strategy.ask()
        assert proposal is not None
        strategy.tell(scored(number, proposal, 0.5 + 0.1 * number, {"macs": macs_of(proposal)}))
    levels = []
    for _ in range(8):
        proposal = strategy.ask()
        assert proposal is not None
        assert proposal.level is not None
        levels.append(proposal.level)
        assert LADDER[proposal.level].holds({"macs": macs_of(proposal)})
        parents = [start.candidate.as_dict() for start in STARTS if start.level == proposal.level]
        moved = [sum(choice != parent[site] for site, choice in proposal.origin) for parent in parents]
        assert 1 <= min(moved) <= 2, "one site, and what a block brings with it"
    assert min(levels.count(0), levels.count(1)) >= 2, "a level with little left to propose passes its turn on"


def test_planned_looks_elsewhere_for_a_share_of_its_proposals() -> None:
    """What is drawn at random is what a mutant of one site can never be: another choice almost everywhere."""

    def far(share: float) -> int:
        planned = Catalog().make(
            "strategies", Pick(name="planned", options={"sites": 1, "crossover": 0, "random": share})
        )
        planned.open(SPACE, 5, STARTS)
        origins = [proposal.origin for _ in range(60) if (proposal := planned.ask()) is not None]
        parents = [start.candidate.as_dict() for start in STARTS]
        return sum(
            min(sum(choice != parent[site] for site, choice in origin) for parent in parents) > 2 for origin in origins
        )

    assert far(0.0) == 0 < far(0.5) < far(1.0)


def test_a_mutant_differs_at_sites_that_count() -> None:
    rng = np.random.default_rng(0)
    parent = SPACE.candidate({"a": 8, "block": 0, "b": 16, "c": 8})
    children = [mutant(SPACE, parent, rng, 1) for _ in range(50)]
    assert all(child != parent for child in children)
    assert {child["block"] for child in children} == {0, 1}


def test_projected_keeps_the_origin() -> None:
    budget = Budget({"macs": 300})
    strategy = Projected(Random(Random.Options()), Projector(CHAIN, budget))
    strategy.open(SPACE, seed=0)
    proposals = [strategy.ask() for _ in range(30)]
    assert any(proposal.origin != proposal.candidate for proposal in proposals if proposal)
    cost = CHAIN.costs_of(SPACE.array([proposal.candidate for proposal in proposals if proposal]))
    assert budget.fits(cost).all()


class Spy:
    """Proposes the teacher and keeps what it is told."""

    def open(self, space: object, seed: int, starts: object = ()) -> None:
        self.told: list[Trial] = []

    def ask(self) -> Proposal:
        return Proposal(SPACE.full(), SPACE.full())

    def tell(self, trial: Trial) -> None:
        self.told.append(trial)


def levels(*limits: int) -> tuple[Spy, Projected]:
    spy = Spy()
    strategy = Projected(spy, *(Projector(CHAIN, Budget({"macs": limit})) for limit in limits))
    strategy.open(SPACE, seed=0)
    return spy, strategy


def test_levels_are_served_in_turn_and_by_number_after_a_replay() -> None:
    _, strategy = levels(600, 400, 200)
    first = [strategy.ask() for _ in range(3)]
    macs = [int(CHAIN.costs_of(SPACE.array([found.candidate]))["macs"][0]) for found in first if found]
    assert all(spent <= limit for spent, limit in zip(macs, (600, 400, 200), strict=True))
    assert macs[0] > 400 > macs[1] > 200 >= macs[2]
    for done in range(3):
        _, again = levels(600, 400, 200)
        for number, found in enumerate(first[:done]):
            assert found is not None
            again.tell(scored(number, found, 0.5, {"macs": macs[number]}))
        assert again.ask() == first[done]


def test_a_level_that_only_repeats_passes_its_turn_on() -> None:
    """The spy never changes its mind, so each level has one network and then nothing new."""
    _, strategy = levels(600, 200)
    keys = [found.candidate.key for found in (strategy.ask() for _ in range(102)) if found]
    assert len(set(keys[:2])) == 2
    assert set(keys[2:52]) == {keys[0]}, "half of the tries that `Distinct` grants"
    assert keys[52] == keys[1]


def test_a_sampler_is_told_how_a_trial_compares_with_its_level() -> None:
    spy, strategy = levels(600, 200)
    proposal = strategy.ask()
    assert proposal is not None
    names = [{"macs": macs} for macs in (500, 500, 150, 150, 500)]
    accuracies = [0.9, 0.7, 0.3, 0.5, 0.8]
    for number, (cost, accuracy) in enumerate(zip(names, accuracies, strict=True)):
        strategy.tell(replace(scored(number, proposal, accuracy, cost), key=f"k{number}"))
    # Above the mean of the level so far: 0.9 of 0.9, 0.7 of 0.8, 0.3 of 0.3, 0.5 of 0.4, 0.8 of 0.8.
    assert [trial.scores[0].accuracy for trial in spy.told] == pytest.approx([0, -0.1, 0, 0.1, 0])
    assert all(trial.scores[0].kl == 0.1 for trial in spy.told)


def test_of_untrained_trials_it_is_told_how_near_they_are_to_the_teacher_among_their_level() -> None:
    spy, strategy = levels(600, 200)
    proposal = strategy.ask()
    assert proposal is not None
    for number, kl in enumerate((0.4, 0.2)):
        trial = replace(scored(number, proposal, 0.1, {"macs": 500}), key=f"k{number}")
        strategy.tell(replace(trial, scores=(Score(0, 0, 0.1, kl, 0.1),)))
    assert [trial.scores[0].rank[0] for trial in spy.told] == pytest.approx([0, 0.1])


def test_a_sampler_of_one_level_is_told_the_scores_themselves() -> None:
    spy, strategy = levels(600)
    proposal = strategy.ask()
    assert proposal is not None
    trials = [replace(scored(number, proposal, 0.1 * number), key=f"k{number}") for number in range(3)]
    for trial in trials:
        strategy.tell(trial)
    assert spy.told == trials


def test_distinct_walks_the_whole_space_once_and_then_says_so() -> None:
    strategy = Distinct(Random(Random.Options()))
    strategy.open(SPACE, seed=0)
    keys = []
    while (proposal := strategy.ask()) is not None:
        keys.append(proposal.candidate.key)
    assert len(keys) == len(set(keys))
    # 4 * 4 * 4 networks with the block and 4 * 4 without; random draws miss a few before 100 repeats in a row.
    assert 70 <= len(keys) <= 80


def test_distinct_tells_a_repeating_strategy_what_is_known_of_the_twin() -> None:
    class Stubborn:
        class Options(Part):
            pass

        told: list[Trial]

        def open(self, space: object, seed: int, starts: object = ()) -> None:
            self.told = []

        def ask(self) -> Proposal:
            return Proposal(SPACE.full() if len(self.told) < 2 else SPACE.least(), SPACE.full())

        def tell(self, trial: Trial) -> None:
            self.told.append(trial)

    stubborn = Stubborn()
    strategy = Distinct(stubborn)
    strategy.open(SPACE, 0)
    first = strategy.ask()
    assert first is not None
    strategy.tell(scored(0, first, 0.5))
    second = strategy.ask()
    assert second is not None
    assert second.candidate == SPACE.least()
    assert [trial.scores[0].accuracy for trial in stubborn.told] == [0.5, 0.5]


def test_nsga2_can_look_for_a_front_by_itself() -> None:
    """Narrow networks are worth as much as wide ones when they cost less; a single goal would forget them."""
    spread = {}
    for aims in ((), ("macs",)):
        strategy = Catalog().make("strategies", Pick(name="nsga2", options={"population": 8}))
        assert isinstance(strategy, Aiming)
        strategy.aim(aims)
        strategy.open(SPACE, seed=1)
        proposals = []
        for number in range(40):
            proposals.append(strategy.ask())
            trial = scored(number, proposals[-1], wide_is_good(proposals[-1]), {"macs": macs_of(proposals[-1])})
            strategy.tell(trial)
        spread[aims] = min(macs_of(proposal) for proposal in proposals[-16:])
    again = Catalog().make("strategies", Pick(name="nsga2"))
    again.aim(("macs",))
    again.open(SPACE, seed=1)
    again.tell(trial)
    assert again.ask() is not None
    assert spread["macs",] < spread[()] / 2


class TestStructure:
    def test_it_looks_around_what_was_learned_for_each_level(self) -> None:
        learned = [SPACE.candidate({"a": width, "block": 1, "b": width, "c": width}) for width in (12, 8)]
        starts = [Start(candidate, level, "learned") for level, candidate in enumerate(learned)]
        strategy = Catalog().make("strategies", Pick(name="structure"))
        strategy.open(SPACE, 0, [*starts, Start(SPACE.full(), 0, "uniform")])
        for level in (0, 1, 0, 1):
            proposal = strategy.ask()
            assert proposal.level == level
            moved = [one for one, other in zip(proposal.candidate, learned[level], strict=True) if one != other]
            assert 1 <= len(moved) <= 2

    def test_it_may_stop_at_what_was_learned(self) -> None:
        strategy = Catalog().make("strategies", Pick(name="structure", options={"neighbours": False}))
        start = Start(SPACE.least(), 0, "learned")
        started = Started(strategy)
        started.open(SPACE, 0, [start])
        first = started.ask()
        assert first is not None
        assert first.candidate == start.candidate
        assert started.ask() is None
