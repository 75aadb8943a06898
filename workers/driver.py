"""
One job, from its claim to its end: teacher, survey, search, finalists, export.

The driver alone writes to the ledger. What it needs to know it reads from the record, so whoever claims the job next
goes on where the record ends, and a phase whose result is on record is not done again.
"""

from __future__ import annotations

import logging
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from search.budget import Budget
from search.costs.measure import count
from search.errors import StaleClaim, StillhouseError, StoreUnavailable, VerificationFailed
from search.export.bundle import FILES, write_bundle
from search.files import Files
from search.plugins import DatasetInfo
from search.quality import Quality
from search.recipe import Recipe, prepare
from search.spec import JobSpec, read_spec
from search.surgery.survey import Survey
from search.teachers.weights import load_weights
from search.training import Pupil
from search.trial import State, Trial
from workers.backends.base import Backend
from workers.exam import Exam, examine
from workers.ports import Artifacts, Claim, JobState, Ledger, Phase
from workers.results import (
    ExportResult,
    FinalistsResult,
    Result,
    SearchResult,
    SurveyResult,
    TeacherResult,
)
from workers.sessions import FinalistsSession, SearchSession, Watch, finalist_key
from workers.teaching import Alive, Epoch, Lesson, teach, training_arrays
from workers.workload import Workload

logger = logging.getLogger("stillhouse.driver")

R = TypeVar("R", bound=Result)


class _Cancelled(Exception):
    """The user has asked for the end."""


class _Hopeless(Exception):
    """Nothing is left that could become the student; the text is the job's reason."""


class Driver:
    """Drives one claimed job. `watch` says when to stop and is told that work goes on."""

    def __init__(
        self, claim: Claim, ledger: Ledger, artifacts: Artifacts, backend: Backend, files: Files, watch: Watch
    ) -> None:
        self._claim, self._ledger, self._artifacts = claim, ledger, artifacts
        self._backend, self._files, self._watch = backend, files, watch
        self._spec: JobSpec = read_spec(claim.spec)
        self._device = "cuda" if self._spec.resources.gpus_per_trial else "cpu"

    def drive(self) -> JobState:
        """
        Walks the phases and closes the job.

        What the user or a candidate did wrong ends the job as FAILED with a reason. Anything else is raised: the
        machine's fault, after which the job may be claimed again.

        Raises:
            StaleClaim: another driver owns the job now; nothing more was written.
            StoreUnavailable: the record or the artifacts cannot be reached; the job may be claimed again.
        """
        try:
            self._walk()
        except _Cancelled:
            return self._close(JobState.CANCELLED, "cancelled by the user")
        except _Hopeless as error:
            return self._close(JobState.FAILED, str(error))
        except (StaleClaim, StoreUnavailable):
            raise
        except StillhouseError as error:
            logger.exception("job %s failed", self._claim.job_id)
            return self._close(JobState.FAILED, f"{error.code}: {error.message}")
        return self._close(JobState.SUCCEEDED, "")

    def _walk(self) -> None:
        resources = self._spec.resources
        self._backend.check(cpus=resources.cpus_per_trial, gpus=resources.gpus_per_trial)
        teacher = self._known(Phase.TEACHER, TeacherResult) or self._teach()
        self._known(Phase.SURVEY, SurveyResult) or self._survey(teacher)
        found = self._known(Phase.SEARCH, SearchResult) or self._search(teacher)
        chosen = self._known(Phase.FINALISTS, FinalistsResult) or self._finalists(teacher, found)
        self._known(Phase.EXPORT, ExportResult) or self._export(teacher, chosen)

    def _teach(self) -> TeacherResult:
        self._enter(Phase.TEACHER)
        lesson = Lesson(self._claim.spec, self._files, self._artifacts, self._device)
        resources = self._spec.resources
        cpus = resources.cpus_per_trial * resources.concurrent_trials
        for _, word in self._backend.map(
            teach, [lesson], cpus=cpus, gpus=resources.gpus_per_trial, stopping=self._watch.stopping
        ):
            if isinstance(word, Epoch):
                self._note("PROGRESS", phase="teacher", done=word.done, total=word.total, accuracy=word.accuracy)
            elif isinstance(word, Alive):
                self._watch.alive()
            else:
                result: TeacherResult = word
                return self._finish(Phase.TEACHER, result)
        raise self._ended_early()

    def _survey(self, teacher: TeacherResult) -> SurveyResult:
        self._enter(Phase.SURVEY)
        found, budget = self._surveyed(teacher)
        bounds = found.bounds()
        return self._finish(
            Phase.SURVEY,
            SurveyResult(
                space=found.space.key,
                sites=len(found.space.sites),
                size=float(found.space.size),
                cost={metric: full for metric, (_, full) in bounds.items()},
                smallest={metric: least for metric, (least, _) in bounds.items()},
                limits=dict(budget.limits),
            ),
        )

    def _search(self, teacher: TeacherResult) -> SearchResult:
        self._enter(Phase.SEARCH)
        found, budget = self._surveyed(teacher)
        strategy = self._recipe.open_strategy(found, [budget])
        session = SearchSession(self._claim, self._ledger, self._spec, found, strategy, self._recipe.rungs, self._watch)
        self._backend.run(session, self._workload(teacher))
        self._go_on()
        finalists = session.conclude()
        if not finalists:
            raise _Hopeless(self._why_no_trial())
        return self._finish(Phase.SEARCH, SearchResult(finalists=tuple(trial.id for trial in finalists)))

    def _finalists(self, teacher: TeacherResult, found: SearchResult) -> FinalistsResult:
        self._enter(Phase.FINALISTS)
        trials = [self._trial(trial_id) for trial_id in found.finalists]
        session = FinalistsSession(self._claim, self._ledger, self._artifacts, self._spec, trials, self._watch)
        self._backend.run(session, self._workload(teacher))
        self._go_on()
        ranked, failed = session.conclude()
        if not ranked:
            raise _Hopeless(f"every finalist failed: {'; '.join(failed.values())}")
        winner = ranked[0].trial
        quality = self._examine(teacher, self._trial(winner))
        return self._finish(
            Phase.FINALISTS,
            FinalistsResult(finalists=tuple(ranked), winner=winner, accuracy=quality.accuracy, kl=quality.kl),
        )

    def _examine(self, teacher: TeacherResult, trial: Trial) -> Quality:
        exam = Exam(
            self._claim.spec,
            self._info,
            self._files,
            self._artifacts,
            teacher.weights,
            trial.choices,
            finalist_key(self._claim, trial.id, self._spec.finalists.steps),
            self._device,
        )
        resources = self._spec.resources
        for _, answer in self._backend.map(
            examine,
            [exam],
            cpus=resources.cpus_per_trial,
            gpus=resources.gpus_per_trial,
            stopping=self._watch.stopping,
        ):
            quality: Quality = answer
            return quality
        raise self._ended_early()

    def _export(self, teacher: TeacherResult, chosen: FinalistsResult) -> ExportResult:
        self._enter(Phase.EXPORT)
        student = self._student(teacher, chosen)
        example = torch.randn(2, *self._info.shape, generator=torch.Generator().manual_seed(1))
        cost = count(student, example)
        _, budget = self._surveyed(teacher)
        over = [verdict for verdict in budget.judge(cost) if not verdict.fits]
        if over:
            raise VerificationFailed(f"the finished student is over its budget: {over}")
        with tempfile.TemporaryDirectory(prefix="sth-export-") as name:
            folder = Path(name)
            deviation = write_bundle(
                student,
                example,
                folder,
                onnx=self._spec.export.onnx,
                classes=self._info.classes,
                mean=self._info.mean,
                std=self._info.std,
            )
            for path in sorted(folder.iterdir()):
                artifact = self._artifacts.put(f"jobs/{self._claim.job_id}/student/{path.name}", path.read_bytes())
                self._ledger.keep(self._claim, f"student/{path.name}", artifact, FILES[path.name])
            size = (folder / "weights.safetensors").stat().st_size
        return self._finish(Phase.EXPORT, ExportResult(trial=chosen.winner, cost=cost, bytes=size, deviation=deviation))

    def _student(self, teacher: TeacherResult, chosen: FinalistsResult) -> nn.Module:
        found, _ = self._surveyed(teacher)
        trial = self._trial(chosen.winner)
        pupil = Pupil(found.graft(found.space.candidate(trial.choices)))
        pupil.restore(self._artifacts.get(finalist_key(self._claim, trial.id, self._spec.finalists.steps)))
        return pupil.model.eval()

    @cached_property
    def _recipe(self) -> Recipe:
        return prepare(self._spec, self._files)

    @property
    def _info(self) -> DatasetInfo:
        return self._recipe.info

    def _surveyed(self, teacher: TeacherResult) -> tuple[Survey, Budget]:
        if self._found is None:
            model = self._recipe.teacher.build(self._info.shape, len(self._info.classes), seed=self._spec.search.seed)
            load_weights(model, self._artifacts.get(teacher.weights))
            found = self._recipe.survey(model)
            self._found = (found, self._recipe.levels(found)[0])
        return self._found

    _found: tuple[Survey, Budget] | None = None

    def _workload(self, teacher: TeacherResult) -> Workload:
        return Workload(
            spec=self._claim.spec,
            info=self._info,
            files=self._files,
            artifacts=self._artifacts,
            teacher=teacher.weights,
            arrays=training_arrays(self._recipe, teacher, self._artifacts),
        )

    def _trial(self, trial_id: str) -> Trial:
        return next(trial for trial in self._ledger.trials(self._claim.job_id) if trial.id == trial_id)

    def _why_no_trial(self) -> str:
        failed = [trial for trial in self._ledger.trials(self._claim.job_id) if trial.state is State.FAILED]
        if not failed:
            return "the strategy proposed no candidate"
        return f"every trial failed; the first: {failed[0].reason}"

    def _known(self, phase: Phase, kind: type[R]) -> R | None:
        record = self._ledger.job(self._claim.job_id).phases.get(phase)
        return kind.model_validate(record.result) if record is not None and record.result is not None else None

    def _enter(self, phase: Phase) -> None:
        self._go_on()
        self._ledger.enter(self._claim, phase)

    def _finish(self, phase: Phase, result: R) -> R:
        self._watch.alive()
        self._ledger.finish(self._claim, phase, result.model_dump(mode="json"))
        return result

    def _note(self, kind: str, **data: object) -> None:
        self._go_on()
        self._watch.alive()
        self._ledger.note(self._claim, kind, data)

    def _ended_early(self) -> Exception:
        return _Cancelled() if self._watch.stopping() else RuntimeError("a worker ended without an answer")

    def _go_on(self) -> None:
        if self._watch.stopping():
            raise _Cancelled

    def _close(self, state: JobState, reason: str) -> JobState:
        self._ledger.close(self._claim, state, reason)
        return state
