"""
Which trial is trained further: successive halving (Jamieson and Talwalkar, 2016, algorithm 1), by our own rule.

A rung is a training length. Of the n trials that come to a rung the best `n // reduction` go on, and one at least. The
rule of asynchronous halving (Li et al., 2020, algorithm 2) takes n for the trials scored so far: it promotes the best
of the first few although better ones come later, and so more than its share. Here n counts those still under way and
still to come as well, and a trial goes on as soon as it can no longer be overtaken. While there is something to propose
no worker waits for that; benchmarks/rungs.py says what is gained and what it costs.

Some of those who go on are `exempt` from the comparison and drawn among the others: slow starters get their chance, and
how they do tells how often stopping discards a trial that would have won.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.front import fronts
from search.trial import State, Trial


@dataclass(frozen=True, slots=True)
class Rungs:
    """
    `steps` are the training lengths, rising; one trial in `reduction` goes on, and of those the share `exempt` is
    drawn by `seed`. Who goes on follows from the scores alone, whatever the number of workers.

    With `costs` to be made small besides, those go on first that no other beats in its score and in all of them, then
    those that only these beat, and so on; among equals the better score decides.
    """

    steps: tuple[int, ...]
    reduction: int
    exempt: float = 0.0
    seed: int = 0
    costs: tuple[str, ...] = ()

    def promotable(self, trials: Sequence[Trial], to_come: int = 0) -> Trial | None:
        """
        The waiting trial that is to go on, of the highest rung that has one, or None.

        `trials` are all of a level; `to_come` more may be proposed for it. Without any to come and any under way there
        is one until as many have gone on as shall.
        """
        for rung in reversed(range(len(self.steps) - 1)):
            found = self._due(trials, rung, to_come)
            if found is not None:
                return found
        return None

    def through(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        """Those that go on from a rung at which all `trials` have been scored or have failed: one at least."""
        scored = self._ranked(trials, rung)
        share = self.going_on(len(scored))
        return [*scored[: share - self._drawn(share)], *self.exempted(trials, rung)]

    def going_on(self, count: int) -> int:
        """How many of the trials that come to a rung go on from it."""
        return min(count, max(1, count // self.reduction))

    def counts(self, trials: int) -> list[int]:
        """How many of so many trials come to each rung, when none fails."""
        counts = [trials]
        for _ in self.steps[1:]:
            counts.append(self.going_on(counts[-1]))
        return counts

    def exempted(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        """
        Those who go on from a rung though they would be stopped, by what is scored so far.

        Which ones is drawn by hashes of their numbers: nobody's score has a say in it.
        """
        scored = self._ranked(trials, rung)
        share = self.going_on(len(scored))
        drawn = self._drawn(share)
        others = scored[share - drawn :]
        return sorted(others, key=lambda trial: self._lot(trial, rung))[:drawn]

    @staticmethod
    def best(trials: Sequence[Trial], count: int) -> list[Trial]:
        """The `count` best trials: higher rungs first, then the score at that rung. Failed trials are left out."""
        scored = [trial for trial in trials if trial.score is not None and trial.state is not State.FAILED]
        return sorted(scored, key=lambda trial: (-trial.rung, *_order(trial, trial.rung - 1)))[:count]

    def _due(self, trials: Sequence[Trial], rung: int, to_come: int) -> Trial | None:
        missing = self._missing(trials, rung, to_come)
        share, left = self._share(trials, rung, missing)
        if not left:
            return None
        regular = share - self._drawn(share)
        able = [trial for trial in self._ranked(trials, rung) if not _ended(trial, rung)]
        # One more network may beat any number of others in everything, so a front is certain when all are known.
        certain = able[: max(0, regular - missing)] if not (self.costs and missing) else []
        if not missing:
            certain = [*certain, *self.exempted(trials, rung), *able]
        return next((trial for trial in certain if _waits(trial, rung)), None)

    def _share(self, trials: Sequence[Trial], rung: int, missing: int) -> tuple[int, int]:
        """How many shall go on from a rung, and how many of these have not yet."""
        scored = ranked(trials, rung)
        able = sum(not _ended(trial, rung) for trial in scored)
        share = min(self.going_on(len(scored) + missing), able + missing)
        return share, max(0, share - sum(_gone(trial, rung) for trial in scored))

    def _ranked(self, trials: Sequence[Trial], rung: int) -> list[Trial]:
        scored = ranked(trials, rung)
        if not self.costs or not scored:
            return scored
        losses = [[-trial.scores[rung].rank[0], *(trial.cost[metric] for metric in self.costs)] for trial in scored]
        order = np.argsort(fronts(np.array(losses, dtype=np.float64)), kind="stable")
        return [scored[at] for at in order]

    def _missing(self, trials: Sequence[Trial], rung: int, to_come: int) -> int:
        """How many more will be scored at a rung when none fails."""
        under_way = sum(_on_its_way(trial, rung) for trial in trials)
        if rung == 0:
            return under_way + to_come
        missing = self._missing(trials, rung - 1, to_come)
        return under_way + self._share(trials, rung - 1, missing)[1]

    def _drawn(self, share: int) -> int:
        """How many of those who go on are exempt; the best one never has to make room."""
        return min(share - 1, round(self.exempt * share + 1e-9)) if share else 0

    def _lot(self, trial: Trial, rung: int) -> str:
        return hashlib.sha256(f"{self.seed} {rung} {trial.number}".encode()).hexdigest()


def ranked(trials: Sequence[Trial], rung: int) -> list[Trial]:
    """The trials scored at a rung, the best first."""
    return sorted((trial for trial in trials if trial.rung > rung), key=lambda trial: _order(trial, rung))


def _order(trial: Trial, rung: int) -> tuple[float, float, int]:
    """Sorts the better trial first; equal scores by number, so that every replay decides alike."""
    first, second = trial.scores[rung].rank
    return (-first, -second, trial.number)


def _waits(trial: Trial, rung: int) -> bool:
    """Whether a trial is scored at a rung, and nobody has let it go on."""
    return trial.rung == rung + 1 and trial.state is State.PENDING and trial.attempt == 0


def _ended(trial: Trial, rung: int) -> bool:
    """Whether a trial ended after a rung: it counts there, but another one goes on in its place."""
    return trial.rung == rung + 1 and trial.state.terminal


def _gone(trial: Trial, rung: int) -> bool:
    """Whether a trial was let go on from a rung."""
    return trial.rung > rung + 1 or (trial.rung == rung + 1 and _on_its_way(trial, rung + 1))


def _on_its_way(trial: Trial, rung: int) -> bool:
    """Whether a trial shall be scored at a rung next: a worker has it, had it before it died, or will have it."""
    given = trial.state is State.RUNNING or (trial.state is State.PENDING and (trial.attempt > 0 or not trial.scores))
    return trial.rung == rung and given
