from __future__ import annotations

from collections.abc import Sequence

from optuna.samplers import BaseSampler, TPESampler
from pydantic import Field

from search.part import Part
from search.plugins import Proposal, Start
from search.space import Space
from search.strategies.sampling import Sampling
from search.trial import Trial


class Tpe:
    """Optuna's tree-structured Parzen estimator: draws near the better trials and away from the others."""

    needs_plan = False

    class Options(Part):
        startup: int = Field(10, ge=1, le=1000)
        """Proposals drawn at random before the estimator begins."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._sampling = Sampling(space, seed, self._sampler)

    def ask(self) -> Proposal | None:
        return self._sampling.ask()

    def tell(self, trial: Trial) -> None:
        self._sampling.tell(trial)

    def _sampler(self, seed: int) -> BaseSampler:
        return TPESampler(seed=seed, n_startup_trials=self.options.startup)
