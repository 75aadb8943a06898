from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from search.part import Part
from search.plugins import Proposal, Start
from search.space import Candidate, Space
from search.strategies.breeding import crossed, mutant, winner
from search.trial import Trial


class Planned:
    """
    The planner's optima and the even widths first, then what lies around the best of them.

    Every level has a pool of its own: its starts, in the planner's order until they have scores, and then the best
    trials proposed for it. Children are mutants of the best of a few drawn from the pool, now and then of two. Between
    them come candidates drawn at random: harms measured alone can mislead, and then the best is far from all optima.
    """

    needs_plan = True

    class Options(Part):
        pool: int = Field(6, ge=1, le=1000)
        """The best trials of a level, from which parents are drawn."""
        tournament: int = Field(2, ge=1, le=1000)
        """How many are drawn; the best of them is the parent."""
        sites: int = Field(2, ge=1, le=64)
        """How many sites of a child are moved by a step or two at most."""
        crossover: float = Field(0.2, ge=0, le=1)
        """Share of the children that have two parents."""
        random: float = Field(0.5, ge=0, le=1)
        """Share of the proposals after the starts that are drawn at random."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._space, self._seed = space, seed
        self._levels = 1 + max((start.level for start in starts), default=0)
        self._starts = [[start.candidate for start in starts if start.level == level] for level in range(self._levels)]
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

    def _child(self, level: int, rng: np.random.Generator) -> Candidate:
        if rng.random() < self.options.random:
            return self._space.sample(rng)
        pool = sorted(self._scored[level].values(), key=lambda entry: -entry[0])[: self.options.pool]
        if not pool:
            pool = [(-float(place), candidate) for place, candidate in enumerate(self._starts[level])]
        if not pool:
            pool = [(0.0, self._space.full())]
        parent = winner(pool, rng, self.options.tournament)
        if rng.random() < self.options.crossover:
            parent = crossed(self._space, parent, winner(pool, rng, self.options.tournament), rng)
        return mutant(self._space, parent, rng, self.options.sites)
