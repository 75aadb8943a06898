from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from search.evidence import Evidence, beats, evidence, exempt_wins, noise, share
from search.rungs import Rungs
from search.trial import Score, State, Trial

RUNGS = Rungs((10, 30), 3, exempt=0.5)


def trial(number: int, *accuracies: float) -> Trial:
    scores = tuple(Score(rung, (10, 30, 90)[rung], accuracy, 1.0, 0.1) for rung, accuracy in enumerate(accuracies))
    return Trial(f"t{number}", number, str(number), {}, {}, {}, State.STOPPED, scores=scores)


def correlation(*levels: list[tuple[float, float]]) -> Evidence:
    groups = [[trial(n, *pair) for n, pair in enumerate(pairs)] for pairs in levels]
    return evidence(RUNGS, groups)


def test_the_interval_covers_the_true_correlation_as_often_as_it_says() -> None:
    """Of a normal pair with correlation rho, Spearman's is 6/pi asin(rho / 2)."""
    rng, truth, covered = np.random.default_rng(0), 6 / math.pi * math.asin(0.7 / 2), 0
    for _ in range(300):
        one = rng.normal(size=12)
        other = 0.7 * one + math.sqrt(1 - 0.49) * rng.normal(size=12)
        [found] = correlation(list(zip(one.tolist(), other.tolist(), strict=True))).correlations
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= truth <= found.high
    assert 0.91 <= covered / 300 <= 0.99


def test_too_few_or_equal_scores_have_no_correlation() -> None:
    for pairs in ([(0.1, 0.1), (0.2, 0.2), (0.3, 0.3)], [(0.5, 0.1 * n) for n in range(6)]):
        [found] = correlation(pairs).correlations
        assert (found.value, found.low, found.high, found.trials) == (None, None, None, len(pairs))


def test_a_perfect_order_of_few_is_not_certain() -> None:
    [found] = correlation([(0.1 * n, 0.1 * n) for n in range(5)]).correlations
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low is not None
    assert found.low < 0.5


def test_levels_do_not_lend_each_other_an_order() -> None:
    """Between levels accuracies differ in the same way at every rung; within them there is no order here."""
    rng = np.random.default_rng(1)
    levels = [[(0.3 * level + a, 0.3 * level + b) for a, b in rng.uniform(0, 0.1, (40, 2))] for level in range(3)]
    [found] = correlation(*levels).correlations
    assert found.value is not None
    assert abs(found.value) < 0.3
    assert found.trials == 120


def test_a_low_correlation_is_told_with_what_to_do() -> None:
    rng = np.random.default_rng(2)
    found = correlation([(a, b) for a, b in rng.uniform(0, 1, (30, 2)).tolist()])
    assert "rank correlation is" in found.advice
    assert "`search.rungs`, for example to [20, 60]" in found.advice
    assert "30 trials" in found.advice
    assert correlation([(n / 30, n / 30) for n in range(30)]).advice == ""
    assert correlation([(0.1, 0.3), (0.2, 0.1), (0.3, 0.4), (0.4, 0.2)]).advice == "", "of four trials nothing is known"


def test_rungs_are_compared_with_the_finalists() -> None:
    trials = [trial(n, n / 10, n / 10) for n in range(6)]
    found = evidence(RUNGS, [trials], {f"t{n}": 1 - n / 10 for n in range(5)}, 600)
    last = found.correlations[-1]
    assert (last.steps, last.later_steps, last.finalists, last.trials) == (30, 600, True, 5)
    assert last.value is not None
    assert last.value < -0.8
    assert Evidence.model_validate(json.loads(json.dumps(found.model_dump(mode="json")))) == found


def test_untrained_scores_are_compared_by_their_nearness_to_the_teacher() -> None:
    rungs = Rungs((0, 10), 3)
    near = [
        replace(trial(n), scores=(Score(0, 0, 0.1, 1.0 - n / 10, 0.1), Score(1, 10, n / 10, 0.1, 0.1)))
        for n in range(6)
    ]
    [found] = evidence(rungs, [near]).correlations
    assert found.value == 1.0


def test_noise_is_pooled_over_candidates_and_its_interval_holds_the_truth() -> None:
    rng, covered = np.random.default_rng(3), 0
    for _ in range(300):
        found = noise((rng.normal(0, 0.01, (3, 2)) + rng.uniform(0, 1, (3, 1))).tolist())
        assert found is not None
        covered += found.low <= 0.01 <= found.high
    assert 0.91 <= covered / 300 <= 0.99
    pair = noise([[0.90, 0.92]])
    assert pair is not None
    assert pair.value == pytest.approx(0.02 / math.sqrt(2)), "the standard deviation of two"
    assert noise([[0.9]]) is None


def test_one_beats_another_only_beyond_noise() -> None:
    """Of equal networks, with as few repetitions as a job has, hardly any is said to beat another."""
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(400):
        scores = rng.normal(0.9, 0.01, 6).tolist()
        found = noise([scores[:2], scores[2:4]])
        wrong += bool(beats(scores[4], scores[5], found))
    assert 0 < wrong / 400 < 0.05, "in one of 40 cases each"
    found = noise([[0.90, 0.92]] * 1000)
    assert found is not None
    assert found.difference == pytest.approx(1.96 * 0.02, rel=0.01), "normal, when it is well known"
    assert beats(0.95, 0.90, found)
    assert not beats(0.93, 0.90, found)
    assert beats(0.93, 0.90, None) is None


def test_an_exempt_trial_wins_when_no_regular_one_is_better_at_the_next_rung() -> None:
    trials = [trial(n, 0.9 - n / 100) for n in range(12)]
    drawn = {one.number for one in RUNGS.exempted(trials, 0)}
    assert len(drawn) == 2
    regular = [number for number in range(12) if number not in drawn][:2]
    lucky = min(drawn)
    later = {number: 0.5 + 0.4 * (number == lucky) for number in (*drawn, *regular)}
    trials = [trial(n, 0.9 - n / 100, *([later[n]] if n in later else [])) for n in range(12)]
    assert exempt_wins(trials, RUNGS) == (1, 2)
    found = evidence(RUNGS, [trials]).exempt
    assert found is not None
    assert (found.trials, found.won, found.rate) == (2, 1, 0.5)
    assert (found.low, found.high) == share(1, 2)
