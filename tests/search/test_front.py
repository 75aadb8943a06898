from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from search.front import Front, chosen, fronts, hypervolume
from search.trial import Score, State, Trial

points = st.integers(2, 4).flatmap(
    lambda width: arrays(
        float, st.tuples(st.integers(1, 7), st.just(width)), elements=st.integers(0, 11).map(lambda n: n / 10)
    )
)


@given(points)
@settings(deadline=None, max_examples=60)
def test_fronts_are_peeled_off_one_after_the_other(losses: np.ndarray) -> None:
    found = fronts(losses)
    for at, one in enumerate(losses):
        better = [other for other, rival in enumerate(losses) if (rival <= one).all() and (rival < one).any()]
        assert found[at] == 1 + max((found[other] for other in better), default=-1)


@given(points)
@settings(deadline=None, max_examples=60)
def test_the_hypervolume_is_that_of_the_cells_some_point_dominates(losses: np.ndarray) -> None:
    """Coordinates are tenths, so counting the cells of a grid of tenths is exact."""
    centres = np.array(list(itertools.product((np.arange(10) + 0.5) / 10, repeat=losses.shape[1])))
    covered = (losses[None] <= centres[:, None]).all(axis=2).any(axis=1)
    assert hypervolume(losses) == pytest.approx(covered.mean())


def test_the_hypervolume_agrees_with_draws_at_random() -> None:
    rng = np.random.default_rng(0)
    losses = rng.uniform(0, 1, (25, 3))
    draws = rng.uniform(0, 1, (100_000, 3))
    covered = np.zeros(len(draws), dtype=bool)
    for point in losses:
        covered |= (point <= draws).all(axis=1)
    assert hypervolume(losses) == pytest.approx(covered.mean(), abs=0.006)


@given(points, st.integers(1, 3))
@settings(deadline=None, max_examples=40)
def test_the_chosen_are_of_the_front_and_nearly_as_good_as_the_best_choice(losses: np.ndarray, count: int) -> None:
    picked = chosen(losses, count)
    ranks = fronts(losses)
    assert all(ranks[at] == 0 for at in picked)
    assert (
        len({tuple(losses[at]) for at in picked})
        == len(picked)
        == min(count, len({tuple(p) for p in losses[ranks == 0]}))
    )
    best = max(
        hypervolume(losses[list(some)]) for some in itertools.combinations(range(len(losses)), min(count, len(losses)))
    )
    assert hypervolume(losses[picked]) >= (1 - 1 / np.e) * best - 1e-12


FRONT = Front(("macs",), {"macs": 1000}, chance=0.1)


def trial(number: int, macs: int, *accuracies: float, state: State = State.STOPPED) -> Trial:
    scores = tuple(Score(rung, 10 * rung + 10, accuracy, 1.0, 0.1) for rung, accuracy in enumerate(accuracies))
    return Trial(f"t{number}", number, str(number), {}, {}, {"macs": macs}, state, scores=scores)


def test_a_guess_that_costs_as_much_as_the_teacher_grants_nothing() -> None:
    assert FRONT.losses([0.1, 1.0], [{"macs": 1000}, {"macs": 0}]).tolist() == [[1.0, 1.0], [0.0, 0.0]]
    assert hypervolume(FRONT.losses([0.1], [{"macs": 10}])) == 0
    assert hypervolume(FRONT.losses([0.55], [{"macs": 500}])) == pytest.approx(0.25)


def test_finalists_are_the_front_of_the_last_rung_and_then_of_the_one_before() -> None:
    trials = [
        trial(0, 900, 0.5, 0.9),
        trial(1, 950, 0.5, 0.8),
        trial(2, 300, 0.5, 0.7),
        trial(3, 200, 0.6),
        trial(4, 100, 0.9, 0.9, state=State.FAILED),
        trial(5, 250, 0.5),
    ]
    assert {one.number for one in FRONT.best(trials, 2)} == {0, 2}
    assert [one.number for one in FRONT.best(trials, 3)][2:] == [3], "not 1, which costs more than 0 and knows less"
    assert len(FRONT.best(trials, 9)) == 3


def test_the_course_rises_to_the_hypervolume_of_all() -> None:
    trials = [trial(2, 100, 0.4), trial(0, 900, 0.9), trial(1, 950, 0.5), trial(3, 500, 0.8)]
    course = FRONT.course(trials)
    assert course == sorted(course)
    assert course[0] == course[1], "the second is beaten by the first"
    losses = FRONT.losses([one.scores[-1].accuracy for one in trials], [one.cost for one in trials])
    assert course[-1] == pytest.approx(hypervolume(losses))
    assert FRONT.course([]) == []
