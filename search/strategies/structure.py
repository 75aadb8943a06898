from __future__ import annotations

import numpy as np
from pydantic import Field

from search.part import Part
from search.plugins import Proposal
from search.space import Candidate
from search.strategies.breeding import Bred, mutant, winner


class Structure(Bred):
    """
    Widths learned in one training under a regulariser that weighs what channels cost, then what lies around them.

    Every level has a pool of its own: the widths learned for it until there are scores, and then the best of its
    trials. Proposals are mutants of the best of a few drawn from the pool. How widths are learned is said by
    `search.structure`; "Compact CNN Structure Learning by Knowledge Distillation" (arXiv 2104.09191), reconstructed.
    """

    needs_plan = False
    needs_structure = True

    class Options(Part):
        neighbours: bool = True
        """Whether mutants are proposed; without them the learned widths and the even ones are all there is."""
        pool: int = Field(4, ge=1, le=1000)
        """The best trials of a level, from which parents are drawn."""
        tournament: int = Field(2, ge=1, le=1000)
        """How many are drawn; the best of them is the parent."""
        sites: int = Field(2, ge=1, le=64)
        """How many sites of a mutant are moved by a step or two at most."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def ask(self) -> Proposal | None:
        return super().ask() if self.options.neighbours else None

    def _child(self, level: int, rng: np.random.Generator) -> Candidate:
        pool = self._best(level, self.options.pool)
        if not pool:
            learned = [start.candidate for start in self._starts[level] if start.kind == "learned"]
            pool = [(0.0, candidate) for candidate in learned or [self._space.full()]]
        return mutant(self._space, winner(pool, rng, self.options.tournament), rng, self.options.sites)
