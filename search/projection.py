"""
Projection: the candidate within a budget that is nearest to a proposal.

Scale the proposal's widths down until it fits, taking blocks away or choosing otherwise at other sites only when the
narrowest widths do not fit, then refill greedily up to the limit. Where that leads nowhere, because a choice that
lowers one cost raises another, begin with a student that the planner knows to fit. Every candidate that is trained
therefore fits by construction, and no part of the budget is left unused for want of trying.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search.budget import Budget
from search.planner import Planner
from search.plugins import CostModel
from search.proof import witness
from search.space import Candidate

_SCALES = np.linspace(1, 0, 257)

Choices = NDArray[np.int64]


class Projector:
    """
    Projects the candidates of one space onto one budget; unless it shall `refill`, only down to it, so that a candidate
    that fits stays as it is.
    """

    def __init__(self, model: CostModel, budget: Budget, *, refill: bool = True) -> None:
        """Raises `BudgetImpossible` when no student fits."""
        self._model, self._space, self.budget = model, model.space, budget
        self._refills = refill
        sites = self._space.sites
        self._widths = np.array([site.kind == "width" for site in sites], dtype=bool)
        self._ladders = {at: np.array(sites[at].choices) for at in np.flatnonzero(self._widths)}
        self._removals = np.array([site.kind == "removal" for site in sites], dtype=bool)
        self._full = np.array([site.full for site in sites], dtype=np.int64)
        self._least = np.array([site.least for site in sites], dtype=np.int64)
        names = list(self._space.by_name)
        self._within = [None if site.within is None else names.index(site.within) for site in sites]
        teacher = {metric: int(costs[0]) for metric, costs in model.costs_of(self._full[None]).items()}
        self._witness = witness(Planner(model.polynomials), budget, teacher)

    def project(self, proposal: Candidate) -> Candidate:
        """The projection of `proposal`; itself when it fits and nothing can be refilled."""
        wanted = self._space.array([proposal])[0]
        if not self._refills and self.budget.fits(self._model.costs_of(wanted[None]))[0]:
            return proposal
        chosen = self._refill(self._shrink(wanted), wanted)
        return self._space.candidate(dict(zip(self._space.by_name, map(int, chosen), strict=True)))

    def _shrink(self, wanted: Choices) -> Choices:
        kept = wanted.copy()
        while True:
            ladder = self._scaled(kept)
            fitting = self.budget.fits(self._model.costs_of(ladder))
            if fitting.any():
                chosen: Choices = ladder[int(fitting.argmax())]
                return chosen
            lighter = self._lighter(kept)
            if lighter is None:
                return self._witness.copy()
            kept = lighter

    def _scaled(self, choices: Choices) -> Choices:
        """Its widths scaled down by every one of `_SCALES` to the next choice there is, `[scales, sites]`."""
        ladder = np.repeat(choices[None], len(_SCALES), axis=0)
        for at, widths in self._ladders.items():
            below = np.searchsorted(widths, _SCALES * choices[at], side="right") - 1
            ladder[:, at] = widths[np.maximum(below, 0)]
        return ladder

    def _lighter(self, choices: Choices) -> Choices | None:
        """
        Takes a block away, or chooses otherwise at a site that is no width: what brings the narrowest network nearest
        to the budget. Without a block, only what brings it nearer; None when nothing does.
        """
        narrow = np.where(self._widths, self._least, choices)
        at, others = self._moves(choices)
        if not len(at):
            return None
        rows = np.repeat(narrow[None], len(at) + 1, axis=0)
        rows[np.arange(len(at)), at] = others
        excess = self.budget.excess(self._model.costs_of(rows))
        best = int(excess[:-1].argmin())
        if excess[best] >= excess[-1]:
            blocks = np.flatnonzero(self._removals[at])
            if not len(blocks):
                return None
            best = int(blocks[excess[blocks].argmin()])
        lighter = choices.copy()
        lighter[at[best]] = others[best]
        return lighter

    def _moves(self, choices: Choices) -> tuple[Choices, Choices]:
        """Sites that are no width with another choice there, both `[moves]`; a block only goes."""
        moves = [
            (at, choice)
            for at, site in enumerate(self._space.sites)
            if not self._widths[at] and not self._void(at, choices)
            for choice in site.choices
            if (choice < choices[at] if self._removals[at] else choice != choices[at])
        ]
        return np.array([at for at, _ in moves], dtype=np.int64), np.array([to for _, to in moves], dtype=np.int64)

    def _refill(self, choices: Choices, wanted: Choices) -> Choices:
        """
        Raises one site by one step at a time, the one that lags most behind the proposal first, while it fits.

        Widths may rise beyond the proposal; other sites only return to it, and before any width rises.
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
            lag = np.where(self._widths[sites], chosen[sites] / np.maximum(wanted[sites], 1), 0)
            chosen = rows[int(np.where(fitting, lag, np.inf).argmin())]

    def _raises(self, chosen: Choices, wanted: Choices) -> tuple[Choices, Choices]:
        """Sites that may rise, and the choice they would have, both `[raises]`."""
        sites, steps = [], []
        for at, site in enumerate(self._space.sites):
            if self._widths[at]:
                step = next((choice for choice in site.choices if chosen[at] < choice), None)
            else:
                step = self._wish(at, chosen, wanted)
            if step is not None and not self._void(at, chosen):
                sites.append(at)
                steps.append(step)
        return np.array(sites, dtype=np.int64), np.array(steps, dtype=np.int64)

    def _wish(self, at: int, chosen: Choices, wanted: Choices) -> int | None:
        """What the proposal had at a site that is no width, unless that is so now or would take a block away."""
        wish = int(wanted[at])
        return None if wish == chosen[at] or (self._removals[at] and wish < chosen[at]) else wish

    def _void(self, at: int, chosen: Choices) -> bool:
        within = self._within[at]
        return within is not None and bool(chosen[within] == 0)
