from __future__ import annotations

import warnings
from collections.abc import Sequence

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler
from pydantic import Field

from search.part import Part
from search.plugins import Proposal, Start
from search.space import Space
from search.strategies.sampling import Sampling
from search.trial import Trial


class Gp:
    """
    Optuna's Gaussian process: proposes what promises the most beyond the best trial so far.

    Learns from fewer trials than others do, and thinks longer: a tenth of a second a proposal at first, and most of a
    second after 300.
    """

    needs_plan = False

    class Options(Part):
        startup: int = Field(10, ge=1, le=1000)
        """Proposals drawn at random before the process begins."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._sampling = Sampling(space, seed, self._sampler)

    def ask(self) -> Proposal | None:
        return self._sampling.ask()

    def tell(self, trial: Trial) -> None:
        self._sampling.tell(trial)

    def _sampler(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return GPSampler(seed=seed, n_startup_trials=self.options.startup)
