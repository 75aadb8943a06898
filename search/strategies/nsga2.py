from __future__ import annotations

from collections.abc import Sequence

from optuna.samplers import BaseSampler, NSGAIISampler
from pydantic import Field

from search.part import Part
from search.plugins import Proposal, Start
from search.space import Space
from search.strategies.sampling import Sampling
from search.trial import Trial


class Nsga2:
    """
    Optuna's genetic algorithm NSGA-II: generations of crossed and mutated candidates, the better ones as parents.

    Where a front is asked for, parents are those that no other beats in its score and in all costs.
    """

    needs_plan = False

    class Options(Part):
        population: int = Field(12, ge=2, le=1000)
        """Trials of a generation; the first one is drawn at random."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._costs: tuple[str, ...] = ()

    def aim(self, costs: Sequence[str]) -> None:
        self._costs = tuple(costs)

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._sampling = Sampling(space, seed, self._sampler, self._costs)

    def ask(self) -> Proposal | None:
        return self._sampling.ask()

    def tell(self, trial: Trial) -> None:
        self._sampling.tell(trial)

    def _sampler(self, seed: int) -> BaseSampler:
        return NSGAIISampler(seed=seed, population_size=self.options.population)
