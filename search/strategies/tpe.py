from __future__ import annotations

from collections.abc import Sequence

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.trial import TrialState, create_trial
from pydantic import Field

from search.part import Part
from search.plugins import Proposal, Start
from search.space import Candidate, Space
from search.trial import State, Trial


class Tpe:
    """
    Optuna's tree-structured Parzen estimator, driven by ask and tell.

    Choices are ordered, so each site is an integer axis. A trial is told with its score at the first rung, the one
    length that all trials share: a mixture of lengths would rank long training above good widths.
    """

    needs_plan = False

    class Options(Part):
        startup: int = Field(10, ge=1, le=1000)
        """Proposals drawn at random before the estimator begins."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._space, self._seed = space, seed
        self._axes: dict[str, BaseDistribution] = {
            site.name: IntDistribution(0, len(site.choices) - 1) for site in space.sites if len(site.choices) > 1
        }
        self._asked: dict[str, list[optuna.trial.Trial]] = {}
        self._told: set[str] = set()
        self._replayed: list[optuna.trial.FrozenTrial] = []
        self._study: optuna.Study | None = None

    def ask(self) -> Proposal | None:
        trial = self._opened().ask(self._axes)
        choices = {
            site.name: site.choices[trial.params[site.name]] if site.name in self._axes else site.full
            for site in self._space.sites
        }
        candidate = self._space.candidate(choices)
        self._asked.setdefault(candidate.key, []).append(trial)
        return Proposal(candidate, candidate)

    def tell(self, trial: Trial) -> None:
        if not trial.scores and trial.state is not State.FAILED:
            return
        origin = self._space.candidate(trial.origin)
        value = trial.scores[0].accuracy if trial.scores else None
        if waiting := self._asked.get(origin.key):
            asked = waiting.pop()
            self._opened().tell(asked, value, state=TrialState.COMPLETE if value is not None else TrialState.FAIL)
        elif origin.key not in self._told:
            self._replay(origin, value)
        self._told.add(origin.key)

    def _replay(self, origin: Candidate, value: float | None) -> None:
        if value is None:
            return
        params = {name: self._space.by_name[name].choices.index(origin[name]) for name in self._axes}
        frozen = create_trial(value=value, params=params, distributions=self._axes)
        if self._study is None:
            self._replayed.append(frozen)
        else:
            self._study.add_trial(frozen)

    def _opened(self) -> optuna.Study:
        if self._study is None:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            # After a replay the same seed would repeat the proposals that are already on record.
            seed = (self._seed + 1_000_003 * len(self._replayed)) % 2**32
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.options.startup)
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
            self._study.add_trials(self._replayed)
        return self._study
