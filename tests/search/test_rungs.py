from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.rungs import Rungs
from search.trial import Score, State, Trial

RUNGS = Rungs((10, 30, 90), 3)


def trial(number: int, *accuracies: float, state: State = State.PENDING) -> Trial:
    scores = tuple(Score(rung, RUNGS.steps[rung], accuracy, 1.0, 0.1) for rung, accuracy in enumerate(accuracies))
    return Trial(f"trial_{number}", number, str(number), {}, {}, {}, state=state, scores=scores)


def test_nobody_is_promoted_before_a_full_share_has_a_score() -> None:
    assert RUNGS.promotable([trial(0, 0.9), trial(1, 0.8)]) is None


def test_the_best_of_three_goes_on() -> None:
    promoted = RUNGS.promotable([trial(0, 0.7), trial(1, 0.9), trial(2, 0.8)])
    assert promoted is not None
    assert promoted.number == 1


def test_higher_rungs_go_first() -> None:
    trials = [trial(n, 0.9 - n / 100, 0.9 - n / 100) for n in range(3)] + [trial(n, 0.1) for n in range(3, 9)]
    promoted = RUNGS.promotable(trials)
    assert promoted is not None
    assert (promoted.number, promoted.rung) == (0, 2)


def test_a_tie_in_accuracy_goes_to_the_network_nearer_to_the_teacher() -> None:
    far, near = trial(0, 0.9), trial(1, 0.9)
    near = Trial(**{**{f: getattr(near, f) for f in near.__slots__}, "scores": (Score(0, 10, 0.9, 0.5, 0.1),)})
    promoted = RUNGS.promotable([far, near, trial(2, 0.1)])
    assert promoted is not None
    assert promoted.number == 1


@pytest.mark.parametrize("state", [State.RUNNING, State.FAILED, State.STOPPED, State.COMPLETED])
def test_only_waiting_trials_are_promoted(state: State) -> None:
    assert RUNGS.promotable([trial(0, 0.9, state=state), trial(1, 0.8), trial(2, 0.7)]) is None


def test_the_leader_goes_on_when_a_search_is_too_small_for_promotion() -> None:
    leader = RUNGS.leader([trial(0, 0.8), trial(1, 0.9)])
    assert leader is not None
    assert leader.number == 1


def test_there_is_no_leader_once_the_last_rung_is_reached() -> None:
    assert RUNGS.leader([trial(0, 0.8, 0.8, 0.8, state=State.COMPLETED), trial(1, 0.9)]) is None


def test_the_best_are_those_that_got_furthest() -> None:
    trials = [trial(0, 0.99), trial(1, 0.5, 0.6), trial(2, 0.5, 0.7), trial(3, 0.9, state=State.FAILED)]
    assert [best.number for best in RUNGS.best(trials, 3)] == [2, 1, 0]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_halving_ends_and_promotes_a_third_at_most(accuracies: list[float]) -> None:
    trials = {n: trial(n, accuracy) for n, accuracy in enumerate(accuracies)}
    while (chosen := RUNGS.promotable(list(trials.values()))) is not None:
        reached = [score.accuracy for score in chosen.scores]
        state = State.COMPLETED if len(reached) + 1 == len(RUNGS.steps) else State.PENDING
        trials[chosen.number] = trial(chosen.number, *reached, reached[-1], state=state)
    at_least = [sum(t.rung > rung for t in trials.values()) for rung in range(3)]
    assert at_least[1] == at_least[0] // 3
    assert at_least[2] == at_least[1] // 3
