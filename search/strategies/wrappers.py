"""
Strategies around strategies: `Started` proposes what is known to be worth it first, `Projected` keeps proposals within
the budget, `Distinct` keeps them different.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from search.budget import level_of
from search.plugins import Proposal, Start, Strategy
from search.projection import Projector
from search.space import Space
from search.trial import Trial

_TRIES = 100


class Started:
    """
    Proposes the starts first, in their order and as they are; then asks the strategy below, which is told of them.

    What became of a start is noted with its trial: its level and its kind.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._known, self._starts = set[str](), list[Start]()

    @property
    def needs_plan(self) -> bool:
        return self._strategy.needs_plan

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._known, self._starts = set(), list(starts)
        self._strategy.open(space, seed, starts)

    def ask(self) -> Proposal | None:
        while self._starts:
            start = self._starts.pop(0)
            if start.candidate.key not in self._known:
                notes = {"level": start.level, "start": start.kind}
                return Proposal(start.candidate, start.candidate, notes, start.level)
        return self._strategy.ask()

    def tell(self, trial: Trial) -> None:
        self._known.add(trial.key)
        self._strategy.tell(trial)


class Projected:
    """
    Projects what the strategy below proposes; the strategy is still told its own proposal (`Trial.origin`).

    A sampler models what it drew itself; the projected candidate may be a point it would never draw. With several
    projectors, one a level and the loosest first, each new trial is the next level's turn; a level that does nothing
    but repeat what is known passes its turn on, so that one with few students left does not hold up the others. The
    sampler is then told how far a score lies above the mean of its level so far, in what it is ranked by: told the
    scores themselves, it would learn that loose budgets are good ones, and nothing about networks.
    """

    def __init__(self, strategy: Strategy, *projectors: Projector) -> None:
        self._strategy, self._projectors = strategy, projectors
        self._levels = [projector.budget for projector in projectors]
        self._forget()

    def _forget(self) -> None:
        self._known, self._repeats = set[str](), 0
        self._scores: dict[tuple[int, int], dict[str, float]] = {}
        """What trials are ranked by, by level and rung, and there by candidate."""

    @property
    def needs_plan(self) -> bool:
        return self._strategy.needs_plan

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._forget()
        self._strategy.open(space, seed, starts)

    def ask(self) -> Proposal | None:
        proposal = self._strategy.ask()
        if proposal is None:
            return None
        levels = len(self._projectors)
        turn = len(self._known) + self._repeats * levels // _TRIES if proposal.level is None else proposal.level
        candidate = self._projectors[turn % levels].project(proposal.candidate)
        self._repeats = self._repeats + 1 if candidate.key in self._known else 0
        self._known.add(candidate.key)
        return replace(proposal, candidate=candidate)

    def tell(self, trial: Trial) -> None:
        self._known.add(trial.key)
        self._strategy.tell(self._relative(trial) if len(self._levels) > 1 else trial)

    def _relative(self, trial: Trial) -> Trial:
        level, scores = level_of(self._levels, trial.cost), []
        for score in trial.scores:
            peers = self._scores.setdefault((level, score.rung), {})
            value, _ = score.rank
            peers[trial.key] = value
            above = value - fmean(peers.values())
            scores.append(replace(score, accuracy=above) if score.step else replace(score, kl=-above))
        return replace(trial, scores=tuple(scores))


class Distinct:
    """
    Never proposes one network twice.

    When the strategy below repeats itself it is told what is known of the twin, so that it moves on, and asked again;
    after 100 repeats in a row the space is taken to be exhausted.
    """

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._known: dict[str, Trial | None] = {}

    @property
    def needs_plan(self) -> bool:
        return self._strategy.needs_plan

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._known.clear()
        self._strategy.open(space, seed, starts)

    def ask(self) -> Proposal | None:
        for _ in range(_TRIES):
            proposal = self._strategy.ask()
            if proposal is None:
                return None
            key = proposal.candidate.key
            if key not in self._known:
                self._known[key] = None
                return proposal
            twin = self._known[key]
            if twin is not None:
                self._strategy.tell(replace(twin, origin=proposal.origin.as_dict(), extra=proposal.extra))
        return None

    def tell(self, trial: Trial) -> None:
        self._known[trial.key] = trial
        self._strategy.tell(trial)
