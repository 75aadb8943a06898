"""The search of a job: sessions on its workers, until there are finalists for every level."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from search.budget import Budget
from search.errors import BudgetImpossible
from search.evidence import evidence
from search.front import Front
from search.recipe import teacher_cost
from search.spec import read_spec
from search.starts import starts, within
from search.trial import State, Trial
from workers.backends.base import Backend
from workers.finals import Hopeless, named
from workers.ports import Phase
from workers.repeats import InTurn, RepeatsSession, chosen
from workers.results import PlanResult, SearchResult, StructureResult
from workers.sessions import SearchSession, Watch
from workers.setting import Setting
from workers.steady import SteadySession
from workers.stopwatch import SENT_BACK, Stopwatch, Trimmed, margins, tightened, trimmed


class Searching:
    """
    The phase of the search. Where times are limited, it is sent back when none of those that it found keeps them.

    `note` writes an event; that and `go_on` raise when the job shall stop.
    """

    def __init__(
        self,
        setting: Setting,
        backend: Backend,
        watch: Watch,
        stopwatch: Stopwatch,
        note: Callable[..., None],
        go_on: Callable[[], None],
    ) -> None:
        self._setting, self._backend, self._watch, self._stopwatch = setting, backend, watch, stopwatch
        self._note, self._go_on = note, go_on
        self._spec = setting.recipe.spec

    def walk(self) -> SearchResult:
        """
        Raises:
            Hopeless: nothing was found that could become a student.
        """
        levels, more = self._setting.levels, 0
        found = self._searched(margins(self._setting.costs), more)
        missing = [level for level, group in enumerate(found) if not group]
        if missing and (not self._setting.recipe.small() or len(missing) == len(found)):
            raise Hopeless(self._why_no_trial(levels, missing[0]))
        for _ in range(SENT_BACK if self._stopwatch.measurements else 0):
            factors = self._trimmed(found).factors
            if not factors:
                break
            more += max(len(levels), self._wanted(more) // 4)
            self._note("SENT_BACK", trials=self._wanted(more), factors=factors)
            anew = self._searched(factors, more, again=True)
            found = [new or old for new, old in zip(anew, found, strict=True)]
        if self._stopwatch.measurements:
            found = self._trimmed(found).finalists
        front, course = self._setting.recipe.front(self._setting.costs), list[float]()
        if front is not None:
            known = self._setting.ledger.trials(self._setting.claim.job_id)
            found, course = [self._unbeaten(front, found, known)], front.course(known)
        groups = tuple(tuple(trial.id for trial in trials) for trials in found)
        repeats = self._repeated()
        return SearchResult(
            finalists=tuple(dict.fromkeys(trial for group in groups for trial in group)),
            levels=groups if len(groups) > 1 else (),
            hypervolume=tuple(course),
            repeats=repeats,
            evidence=evidence(self._setting.recipe.rungs, self._setting.compared(), repeats=repeats),
        )

    def _unbeaten(self, front: Front, found: Sequence[Sequence[Trial]], known: Sequence[Trial]) -> list[Trial]:
        """The finalists of a front: of all trials within the limits or, where times are limited, of those measured."""
        budget = self._setting.recipe.budget(self._setting.costs)
        able = [trial for trial in known if budget.holds(trial.cost)]
        if self._stopwatch.measurements:
            able = list({trial.id: trial for group in found for trial in group}.values())
        return front.best(able, self._spec.finalists.count)

    def _repeats(self) -> RepeatsSession:
        """Scores some trials of the last rung with another seed."""
        rungs = self._setting.recipe.rungs
        trials = chosen(self._setting.compared(), rungs, self._spec.search.repeats)
        return RepeatsSession(
            self._setting.claim, self._setting.ledger, self._setting.scores, self._spec, trials, rungs, self._watch
        )

    def _repeated(self) -> dict[str, tuple[float, float]]:
        """Some trials of the last rung with the accuracy that another seed gives them."""
        session = self._repeats()
        if not session.settled:
            self._backend.run(session, self._setting.workload)
            self._go_on()
        return session.conclude()

    def _wanted(self, more: int) -> int:
        """How many trials there may be: as many as the user wants by now, and `more`."""
        setting = self._setting
        return read_spec(setting.ledger.job(setting.claim.job_id).spec).search.trials + more

    def _searched(self, factors: Mapping[str, float], more: int, *, again: bool = False) -> list[list[Trial]]:
        """The best trials of every level, predicted to be that much faster than they must be, if there are any such."""
        costs, levels = self._setting.costs, self._setting.levels
        plan = self._setting.known(Phase.PLAN, PlanResult)
        learned = self._setting.known(Phase.STRUCTURE, StructureResult)
        first = plan.known(costs.space) if plan else starts(costs, levels)
        if learned:
            first = list({one.candidate.key: one for one in [*first, *learned.known(costs.space)]}.values())
            first.sort(key=lambda one: one.kind != "learned")
        try:
            tighter = tuple(tightened(level, factors, costs.bounds()) for level in levels)
            strategy = self._setting.recipe.open_strategy(costs, tighter, within(costs, tighter, first))
            levels = tighter
        except BudgetImpossible:
            strategy = self._setting.recipe.open_strategy(costs, levels, first)
        # What is sent back was measured, which no seed repeats.
        kind = SteadySession if self._spec.search.deterministic and not again else SearchSession
        session = kind(
            self._setting.claim,
            self._setting.ledger,
            self._setting.scores,
            self._spec,
            costs,
            strategy,
            self._setting.recipe.rungs,
            levels,
            self._watch,
            lambda: self._wanted(more),
        )
        self._backend.run(InTurn(session, self._repeats), self._setting.workload)
        self._go_on()
        return session.conclude()

    def _trimmed(self, found: Sequence[Sequence[Trial]]) -> Trimmed:
        """Measures the trials that would be finalists."""
        costs = self._setting.costs
        return trimmed(found, self._setting.levels, self._stopwatch.costing(teacher_cost(costs)), margins(costs))

    def _why_no_trial(self, levels: Sequence[Budget], level: int) -> str:
        trials = [
            trial
            for trial in self._setting.ledger.trials(self._setting.claim.job_id)
            if levels[level].holds(trial.cost)
        ]
        at = f" at {named(levels, level)}" if len(levels) > 1 else ""
        failed = [trial for trial in trials if trial.state is State.FAILED]
        if not failed:
            return f"the strategy proposed no candidate{at}"
        return f"every trial{at} failed; the first: {failed[0].reason}"
