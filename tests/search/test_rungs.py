from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.rungs import Rungs
from search.trial import Score, State, Trial

RUNGS = Rungs((10, 30, 90), 3)


def trial(number: int, *accuracies: float, state: State = State.PENDING) -> Trial:
    scores = tuple(Score(rung, RUNGS.steps[rung], accuracy, 1.0, 0.1) for rung, accuracy in enumerate(accuracies))
    return Trial(f"trial_{number}", number, str(number), {}, {}, {}, state=state, scores=scores)


def test_nobody_goes_on_who_may_yet_be_overtaken() -> None:
    trials = [trial(0, 0.9), trial(1, 0.8), trial(2, 0.7), trial(3, state=State.RUNNING)]
    assert RUNGS.promotable(trials) is None
    assert RUNGS.promotable(trials[:3], to_come=1) is None


def test_who_can_not_be_overtaken_any_more_goes_on_at_once() -> None:
    trials = [trial(n, 0.9 - n / 100) for n in range(5)] + [trial(5, state=State.RUNNING)]
    promoted = RUNGS.promotable(trials)
    assert promoted is not None, "two of six go on, and the missing one can take only one of the places"
    assert promoted.number == 0
    trials[0] = replace(trials[0], state=State.RUNNING, attempt=1)
    assert RUNGS.promotable(trials) is None


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
    near = replace(near, scores=(Score(0, 10, 0.9, 0.5, 0.1),))
    promoted = RUNGS.promotable([far, near, trial(2, 0.1)])
    assert promoted is not None
    assert promoted.number == 1


def test_the_untrained_are_compared_by_their_nearness_to_the_teacher() -> None:
    trials = [replace(trial(n), scores=(Score(0, 0, 0.1 * n, 0.5 + n, 0.1),)) for n in range(3)]
    promoted = Rungs((0, 10), 3).promotable(trials)
    assert promoted is not None
    assert promoted.number == 0


@pytest.mark.parametrize(
    "gone", [trial(0, 0.9, state=State.RUNNING), trial(0, 0.9, 0.5), trial(0, 0.9, 0.5, 0.5, state=State.COMPLETED)]
)
def test_who_has_gone_on_takes_its_place(gone: Trial) -> None:
    promoted = RUNGS.promotable([gone, trial(1, 0.8), trial(2, 0.7)])
    assert promoted is None or promoted.number == 0


def test_the_next_one_goes_on_in_the_place_of_one_that_failed() -> None:
    promoted = RUNGS.promotable([trial(0, 0.9, state=State.FAILED), trial(1, 0.8), trial(2, 0.7)])
    assert promoted is not None
    assert promoted.number == 1


def test_one_goes_on_however_few_there_are() -> None:
    promoted = RUNGS.promotable([trial(0, 0.8), trial(1, 0.9)])
    assert promoted is not None
    assert promoted.number == 1


def test_who_was_stopped_stays_and_others_go_on() -> None:
    """A search that is taken up again with some more trials."""
    trials = [trial(n, 0.9, state=State.STOPPED) for n in range(4)] + [trial(4, 0.9, 0.9, 0.9, state=State.COMPLETED)]
    trials += [trial(5, 0.1), trial(6, 0.2)]
    promoted = RUNGS.promotable(trials)
    assert promoted is not None
    assert promoted.number == 6


def test_the_best_are_those_that_got_furthest() -> None:
    trials = [trial(0, 0.99), trial(1, 0.5, 0.6), trial(2, 0.5, 0.7), trial(3, 0.9, state=State.FAILED)]
    assert [best.number for best in RUNGS.best(trials, 3)] == [2, 1, 0]


def played(rungs: Rungs, accuracies: Sequence[float], workers: int, seed: int) -> list[Trial]:
    """A search with so many workers whose assignments end in any order; nobody fails."""
    rng, trials = np.random.default_rng(seed), list[Trial]()
    while True:
        running = [one for one in trials if one.state is State.RUNNING]
        to_come = len(accuracies) - len(trials)
        given: Trial | None = None
        if len(running) < workers:
            if to_come:
                trials.append(trial(len(trials)))
                given = trials[-1]
            else:
                given = rungs.promotable(trials, to_come)
        if given is not None:
            assert given.state is State.PENDING
            trials[given.number] = replace(given, state=State.RUNNING, attempt=1)
        elif running:
            done = running[int(rng.integers(len(running)))]
            at = done.rung
            # what it scores later is another draw of the same luck
            accuracy = accuracies[(done.number * (at + 1) + at) % len(accuracies)]
            state = State.COMPLETED if at + 1 == len(rungs.steps) else State.PENDING
            score = Score(at, rungs.steps[at], accuracy, 1.0, 0.1)
            trials[done.number] = replace(done, state=state, attempt=0, scores=(*done.scores, score))
        else:
            return trials


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=40),
    st.integers(1, 9),
    st.floats(0, 0.5),
    st.integers(0, 99),
)
def test_the_same_trials_go_on_whatever_the_workers_and_never_too_many(
    accuracies: list[float], workers: int, exempt: float, seed: int
) -> None:
    rungs = Rungs((10, 30, 90), 3, exempt, seed)
    trials = played(rungs, accuracies, workers, seed)
    alone = played(rungs, accuracies, 1, 0)
    assert [one.rung for one in trials] == [one.rung for one in alone]
    assert [sum(one.rung > rung for one in trials) for rung in range(3)] == rungs.counts(len(accuracies))
    for rung in range(2):
        on = [one for one in trials if one.rung > rung + 1]
        assert {one.number for one in on} == {one.number for one in rungs.through(trials, rung)}
        drawn = {one.number for one in rungs.exempted(trials, rung)}
        worst = min((one.scores[rung].rank for one in on if one.number not in drawn), default=(0.0, 0.0))
        others = [one for one in trials if one.rung == rung + 1 and one.number not in drawn]
        assert all(one.scores[rung].rank <= worst for one in others)


def test_the_exempt_are_drawn_evenly_and_by_the_seed() -> None:
    trials = [trial(n, 0.9 - n / 100) for n in range(30)]
    drawn = [[one.number for one in Rungs((10, 30), 3, 0.2, seed).exempted(trials, 0)] for seed in range(400)]
    assert all(len(numbers) == 2 and min(numbers) >= 8 for numbers in drawn), "ten go on, eight of them by their scores"
    counts = np.bincount([number for numbers in drawn for number in numbers], minlength=30)[8:]
    assert abs(counts - 800 / 22).max() < 4 * (800 / 22) ** 0.5
    assert drawn[0] == [one.number for one in Rungs((10, 30), 3, 0.2, 0).exempted(trials[::-1], 0)]


def test_on_a_front_those_go_on_that_nobody_beats_in_everything() -> None:
    rungs = Rungs((10, 30), 2, costs=("macs",))
    worth = [(0.9, 500), (0.8, 600), (0.7, 100), (0.85, 520)]
    trials = [replace(trial(n, accuracy), cost={"macs": macs}) for n, (accuracy, macs) in enumerate(worth)]
    assert [one.number for one in rungs.through(trials, 0)] == [0, 2], "3 knows more than 2, and 0 beats it in both"
    first = rungs.promotable(trials)
    assert first is not None
    assert first.number == 0
    assert rungs.promotable(trials, to_come=1) is None
    assert rungs.promotable([*trials[:3], replace(trials[3], state=State.RUNNING, scores=())]) is None
