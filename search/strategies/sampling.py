"""Optuna's samplers by ask and tell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import optuna
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.trial import TrialState, create_trial

from search.plugins import Proposal, Start
from search.space import Candidate, Space
from search.trial import State, Trial

_GENERATION = f"{NSGAIISampler.__name__}:generation"


class Sampling:
    """
    One sampler over one space, made by `sampler(seed)` when it is first asked.

    Choices are ordered, so each site is an integer axis. A trial is told with its score at the first rung, the one
    length that all trials share: a mixture of lengths would rank long training above good widths. What was never asked
    for, such as a start or a trial of a former process, is told all the same. A genetic sampler's generation travels
    with the trial, for without it a sampler that is rebuilt would begin again at the first. With `costs`, these are
    further values, each to be small.
    """

    def __init__(
        self, space: Space, seed: int, sampler: Callable[[int], BaseSampler], costs: Sequence[str] = ()
    ) -> None:
        self._space, self._seed, self._sampler, self._costs = space, seed, sampler, costs
        self._axes: dict[str, BaseDistribution] = {
            site.name: IntDistribution(0, len(site.choices) - 1) for site in space.sites if len(site.choices) > 1
        }
        self._asked: dict[str, list[optuna.trial.Trial]] = {}
        self._told: set[str] = set()
        self._replayed: list[optuna.trial.FrozenTrial] = []
        self._record: optuna.Study | None = None

    def ask(self) -> Proposal:
        record = self._opened()
        trial = record.ask(self._axes)
        choices = {
            site.name: site.choices[trial.params[site.name]] if site.name in self._axes else site.full
            for site in self._space.sites
        }
        candidate = self._space.candidate(choices)
        self._asked.setdefault(candidate.key, []).append(trial)
        generation = record.get_trials(deepcopy=False)[trial.number].system_attrs.get(_GENERATION)
        return Proposal(candidate, candidate, None if generation is None else {"generation": generation})

    def tell(self, trial: Trial) -> None:
        if not trial.scores and trial.state is not State.FAILED:
            return
        origin = self._space.candidate(trial.origin)
        values = [trial.scores[0].rank[0], *(trial.cost[metric] for metric in self._costs)] if trial.scores else None
        if waiting := self._asked.get(origin.key):
            asked = waiting.pop()
            self._opened().tell(asked, values, state=TrialState.COMPLETE if values else TrialState.FAIL)
        elif origin.key not in self._told and values:
            self._replay(origin, values, (trial.extra or {}).get("generation", 0))
        self._told.add(origin.key)

    def _replay(self, origin: Candidate, values: Sequence[float], generation: int) -> None:
        params = {name: self._space.by_name[name].choices.index(origin[name]) for name in self._axes}
        frozen = create_trial(
            values=values, params=params, distributions=self._axes, system_attrs={_GENERATION: generation}
        )
        if self._record is None:
            self._replayed.append(frozen)
        else:
            self._record.add_trial(frozen)

    def _opened(self) -> optuna.Study:
        if self._record is None:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            # After a replay the same seed would repeat the proposals that are already on record.
            seed = (self._seed + 1_000_003 * len(self._replayed)) % 2**32
            self._record = optuna.create_study(
                directions=["maximize", *("minimize" for _ in self._costs)], sampler=self._sampler(seed)
            )
            self._record.add_trials(self._replayed)
        return self._record


class Sampled(ABC):
    """What strategies by Optuna's samplers share; each has `Options`, and says which sampler."""

    needs_plan = False
    _costs: tuple[str, ...] = ()

    def open(self, space: Space, seed: int, starts: Sequence[Start] = ()) -> None:
        self._sampling = Sampling(space, seed, self._sampler, self._costs)

    def ask(self) -> Proposal | None:
        return self._sampling.ask()

    def tell(self, trial: Trial) -> None:
        self._sampling.tell(trial)

    @abstractmethod
    def _sampler(self, seed: int) -> BaseSampler: ...
