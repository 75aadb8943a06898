from __future__ import annotations

import warnings

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler
from pydantic import Field

from search.part import Part
from search.strategies.sampling import Sampled


class Gp(Sampled):
    """
    Optuna's Gaussian process: proposes what promises the most beyond the best trial so far.

    Learns from fewer trials than others do, and thinks longer: a tenth of a second a proposal at first, and most of a
    second after 300.
    """

    class Options(Part):
        startup: int = Field(10, ge=1, le=1000)
        """Proposals drawn at random before the process begins."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def _sampler(self, seed: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            return GPSampler(seed=seed, n_startup_trials=self.options.startup)
