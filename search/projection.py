"""
Projection: the candidate within a budget that is nearest to a proposal.

Scale the proposal's widths down until it fits, taking blocks away only when the narrowest widths do not fit, then
refill greedily up to the limit. Every candidate that is trained therefore fits by construction, and no part of the
budget is left unused for want of trying.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search.budget import Budget
from search.plugins import CostModel
from search.space import Candidate

_SCALES = np.linspace(1, 0, 257)

Choices = NDArray[np.int64]


class Projector:
    """Projects the candidates of one space onto one budget."""

    def __init__(self, model: CostModel, budget: Budget) -> None:
        """Raises `BudgetImpossible` when not even the smallest student fits."""
        self._model, self._space, self.budget = model, model.space, budget
        sites = self._space.sites
        self._widths = np.array([site.kind == "width" for site in sites], dtype=bool)
        self._full = np.array([site.full for site in sites], dtype=np.int64)
        self._least = np.array([site.least for site in sites], dtype=np.int64)
        names = list(self._space.by_name)
        self._within = [None if site.within is None else names.index(site.within) for site in sites]
        ends = model.costs_of(np.stack([self._least, self._full]))
        budget.check(
            {metric: int(costs[0]) for metric, costs in ends.items()},
            {metric: int(costs[1]) for metric, costs in ends.items()},
        )

    def project(self, proposal: Candidate) -> Candidate:
        """The projection of `proposal`; itself when it fits and nothing can be refilled."""
        wanted = self._space.array([proposal])[0]
        chosen = self._refill(self._shrink(wanted), wanted)
        return self._space.candidate(dict(zip(self._space.by_name, map(int, chosen), strict=True)))

    def _shrink(self, wanted: Choices) -> Choices:
        kept = wanted.copy()
        while True:
            ladder = np.stack([self._scaled(kept, scale) for scale in _SCALES])
            fitting = self.budget.fits(self._model.costs_of(ladder))
            if fitting.any():
                chosen: Choices = ladder[int(fitting.argmax())]
                return chosen
            kept = self._without_one_block(kept)

    def _scaled(self, choices: Choices, scale: float) -> Choices:
        scaled = choices.copy()
        for at, site in enumerate(self._space.sites):
            if self._widths[at]:
                fitting = [choice for choice in site.choices if choice <= scale * choices[at]]
                scaled[at] = fitting[-1] if fitting else site.least
        return scaled

    def _without_one_block(self, choices: Choices) -> Choices:
        """Takes away the block whose absence brings the narrowest network nearest to the budget."""
        narrow = np.where(self._widths, self._least, choices)
        standing = np.flatnonzero(~self._widths & (choices > self._least))
        rows = np.repeat(narrow[None], len(standing), axis=0)
        rows[np.arange(len(standing)), standing] = self._least[standing]
        costs = self._model.costs_of(rows)
        excess = self.budget.excess(costs)
        shorter = choices.copy()
        shorter[standing[int(excess.argmin())]] = 0
        return shorter

    def _refill(self, choices: Choices, wanted: Choices) -> Choices:
        """
        Raises one site by one step at a time, the one that lags most behind the proposal first, while it fits.

        Widths may rise beyond the proposal; a block that the proposal had taken away stays away.
        """
        chosen = choices.copy()
        while True:
            sites, steps = self._raises(chosen, wanted)
            if not len(sites):
                return chosen
            rows = np.repeat(chosen[None], len(sites), axis=0)
            rows[np.arange(len(sites)), sites] = steps
            fitting = self.budget.fits(self._model.costs_of(rows))
            if not fitting.any():
                return chosen
            lag = np.where(fitting, chosen[sites] / np.maximum(wanted[sites], 1), np.inf)
            chosen = rows[int(lag.argmin())]

    def _raises(self, chosen: Choices, wanted: Choices) -> tuple[Choices, Choices]:
        """Sites that may rise, and the choice one step above the present one, both `[raises]`."""
        sites, steps = [], []
        for at, site in enumerate(self._space.sites):
            ceiling = site.full if self._widths[at] else wanted[at]
            step = next((choice for choice in site.choices if chosen[at] < choice <= ceiling), None)
            if step is not None and not self._void(at, chosen):
                sites.append(at)
                steps.append(step)
        return np.array(sites, dtype=np.int64), np.array(steps, dtype=np.int64)

    def _void(self, at: int, chosen: Choices) -> bool:
        within = self._within[at]
        return within is not None and bool(chosen[within] == 0)
