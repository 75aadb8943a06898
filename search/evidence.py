"""
How far the search of a job can be trusted, measured within the job itself.

Whether a short training foretells a long one, how much a score varies by itself, and how often stopping discards a
trial that would have won: each with a 95 % interval, and not at all where too little is known.

Whoever only shows what was found waits a second for no library: scipy's is loaded by those who look for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from search.rungs import Rungs, ranked
from search.trial import Trial

_LEAST = 4
"""Fewer pairs say nothing of a correlation: its interval would be everything."""
_LOW = 0.5
"""A rank correlation below this orders trials little better than chance does."""
_GOOD = 0.8
"""Where it may as well be above this, too few trials are known to advise anything."""
_TWO_SIDED = 0.975


class _Finding(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Correlation(_Finding):
    """
    Spearman's rank correlation between the scores of the same trials after `steps` and after `later_steps`.

    Only trials that went on have both scores, and they are mostly those that were best after `steps`; among all trials
    it is rather higher than among these.
    """

    steps: int
    later_steps: int
    finalists: bool
    """Whether the later scores are those of the finalists' long training."""
    trials: int
    value: float | None
    """None, as the interval, when fewer than 4 trials of a level have both scores or all scores are equal."""
    low: float | None
    high: float | None


class Noise(_Finding):
    """The standard deviation of the accuracy, 0..1, that one candidate has when it is trained again by another seed."""

    value: float
    low: float
    high: float
    difference: float
    """The least difference of two accuracies that is more than chance makes, with 95 % confidence."""
    repeated: int
    """Trials that were scored more than once."""


class Exempt(_Finding):
    """
    Trials that went on though they would have been stopped, and how many of them then beat all others at the next rung.

    `rate` is the share of stopped trials that would have been the best of the next rung.
    """

    trials: int
    won: int
    rate: float
    low: float
    high: float


class Evidence(_Finding):
    correlations: tuple[Correlation, ...] = ()
    noise: Noise | None = None
    """None when no trial was scored twice."""
    exempt: Exempt | None = None
    """None when no exempt trial came to the next rung."""
    advice: str = ""
    """What to change in the next job; empty when nothing speaks for a change."""


def evidence(
    rungs: Rungs,
    levels: Sequence[Sequence[Trial]],
    finals: Mapping[str, float] | None = None,
    final_steps: int = 0,
    repeats: Mapping[str, Sequence[float]] | None = None,
) -> Evidence:
    """
    What the trials of a search say of it. `levels` are the trials that were compared with each other.

    `finals` are accuracies after the long training of `final_steps`, by trial; `repeats` all accuracies at one length
    of the trials scored more than once, the first score among them.
    """
    correlations = [
        _between(rungs, levels, at, later)
        for at in range(len(rungs.steps))
        for later in range(at + 1, len(rungs.steps))
    ]
    if finals:
        correlations += [_against(rungs, levels, at, finals, final_steps) for at in range(len(rungs.steps))]
    drawn = [exempt_wins(trials, rungs) for trials in levels]
    exempt = _exempt(sum(won for won, _ in drawn), sum(count for _, count in drawn))
    return Evidence(
        correlations=tuple(correlations),
        noise=noise(list((repeats or {}).values())),
        exempt=exempt,
        advice=_advice(rungs, correlations, exempt),
    )


def noise(repeats: Sequence[Sequence[float]]) -> Noise | None:
    """
    Of the scores of each candidate that has several, pooled over candidates; None without any.

    The interval is that of the variance of normal draws (chi-squared). How far two draws may lie apart is by Student's
    t: of a noise known from few repetitions much more than of one that is well known.
    """
    from scipy.stats import chi2, t

    groups = [np.asarray(scores, dtype=np.float64) for scores in repeats if len(scores) > 1]
    freedom = sum(len(scores) - 1 for scores in groups)
    if not freedom:
        return None
    squares = float(sum(((scores - scores.mean()) ** 2).sum() for scores in groups))
    low, high = (math.sqrt(squares / chi2.ppf(quantile, freedom)) for quantile in (_TWO_SIDED, 1 - _TWO_SIDED))
    value = math.sqrt(squares / freedom)
    difference = float(t.ppf(_TWO_SIDED, freedom)) * math.sqrt(2) * value
    return Noise(value=value, low=low, high=high, difference=difference, repeated=len(groups))


def beats(one: float, other: float, found: Noise | None) -> bool | None:
    """Whether an accuracy is higher than another by more than chance makes; None when the noise is unknown."""
    return None if found is None else one - other > found.difference


def exempt_wins(trials: Sequence[Trial], rungs: Rungs) -> tuple[int, int]:
    """How many exempt trials beat every regular one at the next rung, and how many came to it; of one level."""
    won = count = 0
    for rung in range(len(rungs.steps) - 1):
        drawn = {trial.number for trial in rungs.exempted(trials, rung)}
        later = ranked(trials, rung + 1)
        exempt = [trial for trial in later if trial.number in drawn]
        regular = next((trial for trial in later if trial.number not in drawn), None)
        count += len(exempt)
        won += sum(
            regular is not None and trial.scores[rung + 1].rank > regular.scores[rung + 1].rank for trial in exempt
        )
    return won, count


def share(count: int, of: int) -> tuple[float, float]:
    """
    Between which two shares lies the true one when `count` of `of` are so: the exact interval of 95 % confidence
    (Clopper and Pearson, doi.org/10.1093/biomet/26.4.404).
    """
    from scipy.stats import beta

    low = float(beta.ppf(1 - _TWO_SIDED, count, of - count + 1)) if count else 0.0
    high = float(beta.ppf(_TWO_SIDED, count + 1, of - count)) if count < of else 1.0
    return low, high


def _exempt(won: int, count: int) -> Exempt | None:
    if not count:
        return None
    low, high = share(won, count)
    return Exempt(trials=count, won=won, rate=won / count, low=low, high=high)


def _between(rungs: Rungs, levels: Sequence[Sequence[Trial]], at: int, later: int) -> Correlation:
    pairs = [
        [(trial.scores[at].rank[0], trial.scores[later].rank[0]) for trial in trials if trial.rung > later]
        for trials in levels
    ]
    return _correlation(pairs, rungs.steps[at], rungs.steps[later], finalists=False)


def _against(
    rungs: Rungs, levels: Sequence[Sequence[Trial]], at: int, finals: Mapping[str, float], steps: int
) -> Correlation:
    pairs = [
        [(trial.scores[at].rank[0], finals[trial.id]) for trial in trials if trial.rung > at and trial.id in finals]
        for trials in levels
    ]
    return _correlation(pairs, rungs.steps[at], steps, finalists=True)


def _correlation(
    levels: Sequence[Sequence[tuple[float, float]]], steps: int, later_steps: int, *, finalists: bool
) -> Correlation:
    """
    Of several levels the mean of Fisher's z, each by its weight; variance by Bonett and Wright (2000, equation 5).

    A perfect order is never certain: the next best one stands for it in the interval.
    """
    from scipy.stats import spearmanr

    weights, total, perfect = 0.0, 0.0, True
    for pairs in levels:
        one, other = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        if len(pairs) < _LEAST or np.ptp(one) == 0 or np.ptp(other) == 0:
            continue
        value, count = float(spearmanr(one, other).statistic), len(pairs)
        perfect = perfect and value > 1 - 1e-12
        most = 1 - 12 / (count * (count**2 - 1))
        within = max(-most, min(most, value))
        weight = (count - 3) / (1 + within**2 / 2)
        weights, total = weights + weight, total + weight * math.atanh(within)
    trials = sum(map(len, levels))
    if not weights:
        low = high = estimate = None
    else:
        middle, half = total / weights, 1.959964 / math.sqrt(weights)
        low, high = math.tanh(middle - half), 1.0 if perfect else math.tanh(middle + half)
        estimate = 1.0 if perfect else math.tanh(middle)
    return Correlation(
        steps=steps, later_steps=later_steps, finalists=finalists, trials=trials, value=estimate, low=low, high=high
    )


def _advice(rungs: Rungs, correlations: Sequence[Correlation], exempt: Exempt | None) -> str:
    known = [found for found in correlations if found.value is not None]
    worst = min(
        (found for found in known if found.steps == rungs.steps[0]), key=lambda found: found.value or 0, default=None
    )
    if worst is not None and worst.value is not None and worst.value < _LOW and (worst.high or 0) < _GOOD:
        longer = [max(2 * step, 20) for step in rungs.steps]
        return (
            f"The order of trials after {worst.steps} steps says little of that after {worst.later_steps}: their rank "
            f"correlation is {worst.value:.2f} (95 % interval {worst.low:.2f} to {worst.high:.2f}, {worst.trials} "
            f"trials). Raise `search.rungs`, for example to {longer}."
        )
    if exempt is not None and exempt.low > 1 / 20:
        return (
            f"Of {exempt.trials} trials that would have been stopped {exempt.won} beat all others at the next rung. "
            f"Lower `search.reduction` below {rungs.reduction}, or raise `search.rungs`."
        )
    return ""
