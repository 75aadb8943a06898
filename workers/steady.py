"""The search in step: what it finds does not depend on how many workers there are, nor on who is quickest."""

from __future__ import annotations

from dataclasses import replace

from search.trial import State, Trial
from workers.sessions import SearchSession

_GENERATION = 8
"""Proposals asked for at once. Fixed: were it the number of workers, the result would depend on that."""


class SteadySession(SearchSession):
    """
    A search whose rungs are synchronous (successive halving; Jamieson and Talwalkar, 2016).

    Proposals are asked for a generation at a time, each when the one before it has its scores of the first rung, which
    the strategy is then told in order of number. When there are no more, the best of each level go on together from
    rung to rung.

    What a strategy proposes depends on all that it was asked and told. A driver that takes over therefore asks for the
    same generations again, and finds them on record.
    """

    def _recall(self) -> None:
        self._walked: list[str] = []
        self._stage: list[str] = []
        self._rung = 0

    def _settle(self, trial: Trial) -> None:
        self._remember(trial)

    def _due(self) -> Trial | None:
        while True:
            stage = [self._trials[trial] for trial in self._stage]
            for trial in stage:
                if trial.rung == self._rung and trial.state is State.PENDING:
                    return trial
            if any(trial.state is State.RUNNING for trial in stage):
                return None
            self._stage = self._next_stage(stage)
            if not self._stage:
                return None

    def _next_stage(self, stage: list[Trial]) -> list[str]:
        """Those that go on now that `stage` has come through; none at the end."""
        if self._rung == 0:
            for trial in stage:
                self._strategy.tell(_at_first_rung(trial))
            generation = self._generation()
            if generation:
                return generation
        if self._rung + 1 == len(self._rungs.steps):
            return []
        promoted = [trial for group in self._by_level() for trial in self._promoted(group)]
        self._rung += 1
        return [trial.id for trial in sorted(promoted, key=lambda trial: trial.number)]

    def _generation(self) -> list[str]:
        generation: list[str] = []
        while len(generation) < _GENERATION and len(self._walked) < self._limit:
            trial = self._propose()
            if trial is None:
                break
            generation.append(trial.id)
            self._walked.append(trial.id)
        return generation

    def _promoted(self, group: list[Trial]) -> list[Trial]:
        walked = set(self._walked)
        return self._rungs.through([trial for trial in group if trial.id in walked], self._rung)


def _at_first_rung(trial: Trial) -> Trial:
    """As it was when its generation had come through, whatever has become of it since."""
    if not trial.scores:
        return trial
    return replace(trial, scores=trial.scores[:1], state=State.PENDING, attempt=0, reason="")
