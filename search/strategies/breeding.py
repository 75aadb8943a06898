"""What evolution does with candidates, and the pools of levels that it goes on in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from search.plugins import Proposal, Start
from search.space import Candidate, Space
from search.trial import Trial


def mutant(space: Space, parent: Candidate, rng: np.random.Generator, sites: int = 2) -> Candidate:
    """`parent` moved by a step or two at one to `sites` of the sites that count and have a choice."""
    choices = parent.as_dict()
    open_ = [
        site for site in space.sites if len(site.choices) > 1 and (site.within is None or choices[site.within] != 0)
    ]
    if not open_:
        return parent
    count = min(len(open_), int(rng.integers(1, sites + 1)))
    for at in rng.choice(len(open_), count, replace=False):
        site = open_[int(at)]
        place = site.choices.index(choices[site.name])
        near = [other for other in range(len(site.choices)) if 0 < abs(other - place) <= 2]
        choices[site.name] = site.choices[near[int(rng.integers(len(near)))]]
    return space.candidate(choices)


def crossed(space: Space, one: Candidate, other: Candidate, rng: np.random.Generator) -> Candidate:
    """Every site's choice from one of two parents."""
    first, second = one.as_dict(), other.as_dict()
    return space.candidate({name: (first if rng.random() < 0.5 else second)[name] for name in space.by_name})


def winner(pool: Sequence[tuple[float, Candidate]], rng: np.random.Generator, size: int) -> Candidate:
    """The best of `size` drawn from candidates with their values, larger being better."""
    drawn = rng.choice(len(pool), min(size, len(pool)), replace=False)
    return max((pool[int(at)] for at in sorted(drawn)), key=lambda entry: entry[0])[1]


class Bred(ABC):
    """
    A strategy whose levels have a pool each, of the trials that were proposed for it, by their first score; levels take
    turns. Subclasses say what a child of a level is.
    """

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._space, self._seed = space, seed
        self._levels = 1 + max((start.level for start in starts), default=0)
        self._starts = [[start for start in starts if start.level == level] for level in range(self._levels)]
        self._scored: list[dict[str, tuple[float, Candidate]]] = [{} for _ in range(self._levels)]
        self._known: set[str] = set()
        self._asked = 0
        self._rng: np.random.Generator | None = None

    def ask(self) -> Proposal | None:
        if self._rng is None:
            # A replay must not draw again what is already on record.
            self._rng = np.random.default_rng([self._seed, len(self._known)])
            self._asked = len(self._known)
        level = self._asked % self._levels
        self._asked += 1
        child = self._child(level, self._rng)
        return Proposal(child, child, {"level": level}, level)

    def tell(self, trial: Trial) -> None:
        self._known.add(trial.key)
        level = (trial.extra or {}).get("level")
        if trial.scores and level is not None and 0 <= level < self._levels:
            value = trial.scores[0].rank[0]
            self._scored[level].setdefault(trial.key, (value, self._space.candidate(trial.choices)))

    def _best(self, level: int, count: int) -> list[tuple[float, Candidate]]:
        """Of those that have a score, best first."""
        return sorted(self._scored[level].values(), key=lambda entry: -entry[0])[:count]

    @abstractmethod
    def _child(self, level: int, rng: np.random.Generator) -> Candidate: ...
