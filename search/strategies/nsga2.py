from __future__ import annotations

from collections.abc import Sequence

from optuna.samplers import BaseSampler, NSGAIISampler
from pydantic import Field

from search.part import Part
from search.strategies.sampling import Sampled


class Nsga2(Sampled):
    """
    Optuna's genetic algorithm NSGA-II: generations of crossed and mutated candidates, the better ones as parents.

    Where a front is asked for, parents are those that no other beats in its score and in all costs.
    """

    class Options(Part):
        population: int = Field(12, ge=2, le=1000)
        """Trials of a generation; the first one is drawn at random."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def aim(self, costs: Sequence[str]) -> None:
        self._costs = tuple(costs)

    def _sampler(self, seed: int) -> BaseSampler:
        return NSGAIISampler(seed=seed, population_size=self.options.population)
