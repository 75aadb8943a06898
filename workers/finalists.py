"""The session of the finalists: the best trials of the search, trained long."""

from __future__ import annotations

from collections.abc import Sequence

from search.spec import JobSpec
from search.trial import Trial
from workers.assignment import Assignment, Done, Failed, Outcome, Progress
from workers.backends.base import WAIT, Wait
from workers.finals import Wanted
from workers.ports import Claim, Ledger
from workers.results import FinalistResult
from workers.scores import Scores
from workers.sessions import Pace, Watch


class FinalistsSession:
    """
    Trains the finalists long, each in stretches with a checkpoint after every one.

    Who is `wanted` may depend on how the first ones did. How far a finalist has come is told by the checkpoints that
    exist, so a taken-over job repeats one stretch of each at most, and none that another job has walked before.
    """

    def __init__(
        self,
        claim: Claim,
        ledger: Ledger,
        scores: Scores,
        spec: JobSpec,
        wanted: Wanted,
        watch: Watch,
    ) -> None:
        self._claim, self._ledger, self._scores, self._spec, self._watch = claim, ledger, scores, spec, watch
        self._wanted = wanted
        self._under_way: set[str] = set()
        self._attempts: dict[str, int] = {}
        self._failed: dict[str, str] = {}
        self._results: dict[str, FinalistResult] = {}
        self._reached: dict[str, int] = {}
        self._pace = Pace()

    @property
    def slots(self) -> int:
        return self._spec.resources.concurrent_trials

    def next(self) -> Assignment | Wait | None:
        while trial := self._due():
            known = self._scores.find(self._key(trial, self._spec.finalists.steps))
            if known is None:
                self._under_way.add(trial.id)
                self._attempts[trial.id] = self._attempts.get(trial.id, 0) + 1
                return self._assignment(trial)
            self._watch.alive()
            self._reached[trial.id] = known.step
            self._finish(trial.id, trial.number, known, cached=True)
        return WAIT if self._under_way else None

    def _due(self) -> Trial | None:
        settled = self._under_way | self._results.keys() | self._failed.keys()
        return next((trial for trial in self._finalists() if trial.id not in settled), None)

    def progress(self, assignment: Assignment, progress: Progress) -> None:
        self._watch.alive()
        self._reached[assignment.trial] = progress.step
        if self._pace.due():
            total = self._spec.finalists.steps * len(self._finalists())
            done = sum(self._reached.values())
            self._ledger.note(self._claim, "PROGRESS", {"phase": "finalists", "done": done, "total": total})

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        self._watch.alive()
        self._under_way.discard(assignment.trial)
        match outcome:
            case Done():
                self._attempts[assignment.trial] = 0
                self._reached[assignment.trial] = outcome.step
                if outcome.step == self._spec.finalists.steps:
                    self._finish(assignment.trial, assignment.number, outcome)
            case Failed():
                self._failed[assignment.trial] = f"{outcome.code}: {outcome.message}"
            case _ if self._attempts[assignment.trial] >= self._spec.resources.attempts:
                self._failed[assignment.trial] = f"INFRASTRUCTURE_EXHAUSTED: {outcome.message}"
            case _:
                self._reached[assignment.trial] = assignment.start

    def stopping(self) -> bool:
        return self._watch.stopping()

    def conclude(self) -> tuple[list[FinalistResult], dict[str, str]]:
        """The finalists that came through, best on validation first, and the reasons of those that did not."""
        ranked = sorted(self._results.values(), key=lambda result: (-result.accuracy, result.kl))
        return ranked, self._failed

    def _finalists(self) -> Sequence[Trial]:
        finalists = self._wanted(
            {trial: result.accuracy for trial, result in self._results.items()} | dict.fromkeys(self._failed)
        )
        for trial in finalists:
            if trial.id not in self._reached:
                self._reached[trial.id] = self._step_of(trial)
        return finalists

    def _finish(self, trial: str, number: int, done: Done, *, cached: bool = False) -> None:
        self._results[trial] = FinalistResult(trial=trial, accuracy=done.accuracy, kl=done.kl, cached=cached)
        said = {"trial": trial, "number": number, "accuracy": done.accuracy, "kl": done.kl, "cached": cached}
        self._ledger.note(self._claim, "FINALIST_SCORED", said)

    def _steps(self) -> list[int]:
        total, every = self._spec.finalists.steps, self._spec.finalists.checkpoint_every
        return [*range(every, total, every), total]

    def _step_of(self, trial: Trial) -> int:
        """The last checkpoint before the end; where the end is not known, the final stretch has to be walked."""
        reached = [step for step in self._steps()[:-1] if self._scores.artifacts.has(self._key(trial, step))]
        return max(reached, default=0)

    def _key(self, trial: Trial, step: int) -> str:
        return self._scores.final_key(trial.choices, trial.rung - 1, step)

    def _assignment(self, trial: Trial) -> Assignment:
        start = self._reached[trial.id]
        stop = next(step for step in self._steps() if step > start)
        return Assignment(
            trial=trial.id,
            number=trial.number,
            choices=dict(trial.choices),
            schedule="finalists",
            start=start,
            stop=stop,
            cosine=(0, self._spec.finalists.steps),
            seed=self._spec.search.seed,
            read=self._key(trial, start) if start else self._scores.key(trial.choices, trial.rung - 1),
            fresh=start == 0,
            write=self._key(trial, stop),
        )
