"""Who is trained long, and who wins: every order of levels that can pass is played through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.budget import Budget
from search.front import Front
from search.trial import Score, State, Trial
from workers.finals import Bisection, Everyone, Hopeless, best_of_levels, cheapest, front_of, reaches
from workers.results import FinalistResult


def trial(number: int, macs: int, accuracy: float = 0.5) -> Trial:
    score = Score(0, 10, accuracy, 0.1, 1.0)
    return Trial(f"t{number}", number, f"k{number}", {}, {}, {"macs": macs}, State.COMPLETED, scores=(score,))


def ladder(accuracies: list[float]) -> list[list[Trial]]:
    """One trial a level, ever cheaper; `accuracies` are those of the search."""
    return [[trial(level, 100 - level, accuracy)] for level, accuracy in enumerate(accuracies)]


def played(wanted: Bisection, accuracies: list[float | None]) -> tuple[list[str], dict[str, float | None]]:
    """Trains whoever is wanted until nobody is missing; the order they were trained in, and what is known then."""
    order: list[str] = []
    known: dict[str, float | None] = {}
    while missing := [found for found in wanted(known) if found.id not in known]:
        for found in missing:
            order.append(found.id)
            known[found.id] = accuracies[found.number]
    return order, known


@given(st.integers(1, 9), st.data())
def test_the_cheapest_level_that_passes_is_found_in_few_steps(count: int, data: st.DataObject) -> None:
    """All down to `last` keep the floor, none below; whatever short training had suggested."""
    last = data.draw(st.integers(-1, count - 1))
    hints = data.draw(st.lists(st.sampled_from([0.5, 0.95]), min_size=count, max_size=count))
    long = [0.95 if level <= last else None if level % 2 else 0.8 for level in range(count)]
    levels = ladder(hints)
    order, known = played(Bisection(levels, 0.9), long)
    assert len(order) <= 1 + count.bit_length()
    if last >= 0:
        assert f"t{last}" in order
    if last + 1 < count:
        assert f"t{last + 1}" in order
    trials = {found.id: found for group in levels for found in group}
    ranked = sorted(
        (FinalistResult(trial=name, accuracy=value, kl=0.1) for name, value in known.items() if value is not None),
        key=lambda result: -result.accuracy,
    )
    if last >= 0:
        assert cheapest(ranked, trials, "macs", 0.9).trial == f"t{last}"


def test_it_begins_where_short_training_has_reached_the_floor() -> None:
    hinted = Bisection(ladder([0.95, 0.92, 0.91, 0.6, 0.5, 0.4]), 0.9)
    assert [found.id for found in hinted({})] == ["t2"]
    blind = Bisection(ladder([0.5] * 6), 0.9)
    assert [found.id for found in blind({})] == ["t2"]
    assert played(hinted, [0.95, 0.95, 0.95, 0.95, 0.8, 0.8])[0] == ["t2", "t4", "t3"]


def test_all_finalists_of_a_level_are_heard_before_it_is_judged() -> None:
    levels = [[trial(0, 90), trial(1, 80)], [trial(2, 40), trial(3, 30)]]
    wanted = Bisection(levels, 0.9)
    assert [found.id for found in wanted({})] == ["t0", "t1"]
    assert [found.id for found in wanted({"t0": 0.95})] == ["t0", "t1"], "one is still under way"
    assert [found.id for found in wanted({"t0": None, "t1": 0.95})] == ["t0", "t1", "t2", "t3"]
    assert [found.id for found in wanted({"t0": None, "t1": 0.5})] == ["t0", "t1"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0, 1), st.randoms())
def test_who_takes_over_wants_the_same(accuracies: list[float], floor: float, chance: st.DataObject) -> None:
    wanted = Bisection(ladder(accuracies), floor)
    order, known = played(wanted, list(accuracies))
    again, _ = played(wanted, list(accuracies))
    assert again == order
    for count in range(len(order) + 1):
        part = {name: known[name] for name in order[:count]}
        assert {found.id for found in wanted(part)} <= {found.id for found in wanted(known)}


def test_a_level_that_nothing_fits_is_passed_over() -> None:
    order, _ = played(Bisection([[trial(0, 90)], [trial(1, 60)], [], []], 0.9), [0.95, 0.95])
    assert order == ["t1"]


def test_a_finalist_of_two_levels_is_trained_once() -> None:
    one, other = trial(0, 90), trial(1, 40)
    assert Everyone([[one, other], [other]])({}) == [one, other]


LEVELS = [Budget({"macs": 100}), Budget({"macs": 50})]
TRIALS = {found.id: found for found in (trial(0, 90), trial(1, 60), trial(2, 40))}


def results(**accuracies: float) -> list[FinalistResult]:
    ranked = sorted(accuracies.items(), key=lambda item: -item[1])
    return [FinalistResult(trial=name, accuracy=accuracy, kl=0.1) for name, accuracy in ranked]


def test_a_tighter_trial_may_win_a_looser_level() -> None:
    winners = best_of_levels(LEVELS, results(t0=0.9, t1=0.8, t2=0.95), TRIALS)
    assert [winner.trial for winner in winners] == ["t2", "t2"]
    winners = best_of_levels(LEVELS, results(t0=0.9, t1=0.8, t2=0.7), TRIALS)
    assert [winner.trial for winner in winners] == ["t0", "t2"]


def test_a_level_without_a_finalist_is_named() -> None:
    with pytest.raises(Hopeless, match=r"every finalist of level 2 \(macs <= 50\) failed"):
        best_of_levels(LEVELS, results(t0=0.9, t1=0.8), TRIALS)


def test_the_best_reached_is_named_when_none_keeps_the_accuracy() -> None:
    assert cheapest(results(t0=0.95, t1=0.9, t2=0.8), TRIALS, "macs", 0.9).trial == "t1"
    with pytest.raises(Hopeless, match=r"96\.00% on validation are asked for.* reached 95\.00% with 90 macs"):
        cheapest(results(t0=0.95, t1=0.9), TRIALS, "macs", 0.96)


def test_a_floor_is_reached_as_a_person_counts() -> None:
    assert reaches(283 / 300, 0.9433333333333335), "one bit above the quotient"
    assert not reaches(0.9432, 0.9433)
    assert not reaches(None, 0)


def test_the_students_of_a_front_are_those_nobody_beats_the_dearest_first() -> None:
    front = Front(("macs",), {"macs": 1000}, chance=0.1)
    cost = {trial: TRIALS[trial].cost["macs"] for trial in ("t0", "t1", "t2")}
    assert len(set(cost.values())) == 3
    dear, middle, cheap = sorted(cost, key=lambda trial: -cost[trial])
    found = front_of(results(**{dear: 0.9, middle: 0.7, cheap: 0.8}), TRIALS, front)
    assert [result.trial for result in found] == [dear, cheap]
