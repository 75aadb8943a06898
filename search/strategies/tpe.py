from __future__ import annotations

from optuna.samplers import BaseSampler, TPESampler
from pydantic import Field

from search.part import Part
from search.strategies.sampling import Sampled


class Tpe(Sampled):
    """Optuna's tree-structured Parzen estimator: draws near the better trials and away from the others."""

    class Options(Part):
        startup: int = Field(10, ge=1, le=1000)
        """Proposals drawn at random before the estimator begins."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def _sampler(self, seed: int) -> BaseSampler:
        return TPESampler(seed=seed, n_startup_trials=self.options.startup)
