from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from search.part import Part
from search.plugins import Proposal, Start
from search.space import Candidate, Space
from search.strategies.breeding import crossed, mutant, winner
from search.trial import Trial


class Evolution:
    """
    Regularised evolution: mutants of the best of a few drawn from the latest trials.

    Begins with the even widths and random candidates. The oldest leave the pool, however good: a lucky score is not
    bred from for ever (Real et al., 2019, doi.org/10.1609/aaai.v33i01.33014780).
    """

    needs_plan = False

    class Options(Part):
        pool: int = Field(12, ge=2, le=1000)
        """The latest trials, from which parents are drawn."""
        tournament: int = Field(4, ge=1, le=1000)
        """How many are drawn; the best of them is the parent."""
        crossover: float = Field(0.25, ge=0, le=1)
        """Share of the children that have two parents."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._space, self._seed = space, seed
        self._scored: dict[str, tuple[float, Candidate]] = {}
        self._known: set[str] = set()
        self._asked = 0
        self._rng: np.random.Generator | None = None

    def ask(self) -> Proposal | None:
        if self._rng is None:
            # A replay must not draw again what is already on record.
            self._rng = np.random.default_rng([self._seed, len(self._known)])
            self._asked = len(self._known)
        self._asked += 1
        child = self._space.full() if self._asked == 1 else self._child(self._rng)
        return Proposal(child, child)

    def tell(self, trial: Trial) -> None:
        self._known.add(trial.key)
        if trial.scores and trial.key not in self._scored:
            self._scored[trial.key] = (trial.scores[0].rank[0], self._space.candidate(trial.choices))

    def _child(self, rng: np.random.Generator) -> Candidate:
        pool = list(self._scored.values())[-self.options.pool :]
        if self._asked <= self.options.pool or len(pool) < 2:
            return self._space.sample(rng)
        parent = winner(pool, rng, self.options.tournament)
        if rng.random() < self.options.crossover:
            parent = crossed(self._space, parent, winner(pool, rng, self.options.tournament), rng)
        return mutant(self._space, parent, rng)
