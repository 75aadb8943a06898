from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from search.part import Part
from search.plugins import Proposal, Start
from search.space import Candidate, Space
from search.strategies.breeding import mutant, winner
from search.trial import Trial


class Structure:
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

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._space, self._seed = space, seed
        self._levels = 1 + max((start.level for start in starts), default=0)
        self._starts = [
            [start.candidate for start in starts if start.level == level and start.kind == "learned"]
            for level in range(self._levels)
        ]
        self._scored: list[dict[str, tuple[float, Candidate]]] = [{} for _ in range(self._levels)]
        self._known: set[str] = set()
        self._asked = 0
        self._rng: np.random.Generator | None = None

    def ask(self) -> Proposal | None:
        if not self.options.neighbours:
            return None
        if self._rng is None:
            # A replay must not draw again what is already on record.
            self._rng = np.random.default_rng([self._seed, len(self._known)])
            self._asked = len(self._known)
        level = self._asked % self._levels
        self._asked += 1
        child = mutant(self._space, self._parent(level, self._rng), self._rng, self.options.sites)
        return Proposal(child, child, {"level": level}, level)

    def tell(self, trial: Trial) -> None:
        self._known.add(trial.key)
        level = (trial.extra or {}).get("level")
        if trial.scores and level is not None and 0 <= level < self._levels:
            value = trial.scores[0].rank[0]
            self._scored[level].setdefault(trial.key, (value, self._space.candidate(trial.choices)))

    def _parent(self, level: int, rng: np.random.Generator) -> Candidate:
        pool = sorted(self._scored[level].values(), key=lambda entry: -entry[0])[: self.options.pool]
        if not pool:
            pool = [(0.0, candidate) for candidate in self._starts[level] or [self._space.full()]]
        return winner(pool, rng, self.options.tournament)
