from __future__ import annotations

import numpy as np
from pydantic import Field

from search.part import Part
from search.space import Candidate
from search.strategies.breeding import Bred, crossed, mutant, winner


class Planned(Bred):
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

    def _child(self, level: int, rng: np.random.Generator) -> Candidate:
        if rng.random() < self.options.random:
            return self._space.sample(rng)
        pool = self._best(level, self.options.pool)
        if not pool:
            pool = [(-float(place), start.candidate) for place, start in enumerate(self._starts[level])]
        if not pool:
            pool = [(0.0, self._space.full())]
        parent = winner(pool, rng, self.options.tournament)
        if rng.random() < self.options.crossover:
            parent = crossed(self._space, parent, winner(pool, rng, self.options.tournament), rng)
        return mutant(self._space, parent, rng, self.options.sites)
