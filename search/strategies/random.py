from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.part import Part
from search.plugins import Proposal, Start
from search.space import Space
from search.trial import Trial


class Random:
    """Every choice drawn evenly; the control that a cleverer strategy has to beat."""

    needs_plan = False

    class Options(Part):
        pass

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._space, self._seed, self._told = space, seed, set[str]()
        self._rng: np.random.Generator | None = None

    def ask(self) -> Proposal | None:
        if self._rng is None:
            # A replay must not draw again what is already on record.
            self._rng = np.random.default_rng([self._seed, len(self._told)])
        candidate = self._space.sample(self._rng)
        return Proposal(candidate, candidate)

    def tell(self, trial: Trial) -> None:
        if "start" not in (trial.extra or {}):  # its own
            self._told.add(trial.key)
