"""
One job, from its claim to its end: teacher, survey, library, plan, elastic student, learned widths, search, finalists,
export.

The driver alone writes to the ledger. What it needs to know it reads from the record, so whoever claims the job next
goes on where the record ends, and a phase whose result is on record is not done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TypeVar

from search.budget import Budget
from search.errors import Outdated, StaleClaim, StillhouseError, StoreUnavailable, VerificationFailed
from search.evidence import evidence
from search.export.bundle import FILES
from search.files import Files
from search.front import hypervolume
from search.limits import AccuracyGoal
from search.plugins import DatasetInfo
from search.quality import Grade
from search.recipe import Recipe, best_cost, prepare, teacher_cost
from search.spec import JobSpec, read_spec
from search.trial import Trial
from workers.backends.base import Backend
from workers.exam import Exam, examine
from workers.exporting import write_student
from workers.finalists import FinalistsSession
from workers.finals import Bisection, Everyone, Hopeless, best_of_levels, cheapest, front_of
from workers.ports import Artifact, Artifacts, Claim, JobState, Ledger, Phase, Wish
from workers.preparing import Preparing
from workers.results import (
    DatasetResult,
    ElasticResult,
    Exported,
    ExportResult,
    FinalistsResult,
    LibraryResult,
    PlanResult,
    Result,
    SearchResult,
    StructureResult,
    SurveyResult,
    TeacherResult,
    Winner,
    student_folder,
)
from workers.rules import CANCELLED
from workers.searching import Searching
from workers.sessions import Watch
from workers.setting import Setting, on_record
from workers.stopwatch import (
    Stopwatch,
    Times,
    check_times,
    table_results,
    with_times,
)
from workers.teaching import Alive, Epoch, Lesson, teach
from workers.timing import Place

logger = logging.getLogger("stillhouse.driver")

R = TypeVar("R", bound=Result)


class _Stopped(Exception):
    """The user has asked for the end, or for a pause."""


class Driver:
    """Drives one claimed job. `watch` says when to stop and is told that work goes on."""

    def __init__(
        self, claim: Claim, ledger: Ledger, artifacts: Artifacts, backend: Backend, files: Files, watch: Watch
    ) -> None:
        self._claim, self._ledger, self._artifacts = claim, ledger, artifacts
        self._backend, self._files, self._watch = backend, files, watch
        self._spec: JobSpec = read_spec(claim.spec)
        self._device = "cuda" if self._spec.resources.gpus_per_trial else "cpu"

    def drive(self) -> JobState | None:
        """
        Walks the phases and closes the job. None: its user wants a pause, and the job was given back.

        What the user or a candidate did wrong ends the job as FAILED with a reason. Anything else is raised: the
        machine's fault, after which the job may be claimed again.

        Raises:
            StaleClaim: another driver owns the job now; nothing more was written.
            StoreUnavailable: the record or the artifacts cannot be reached; the job may be claimed again.
        """
        try:
            logger.info("begun with claim %d", self._claim.token)
            self._walk()
        except _Stopped:
            if self._watch.wish() is Wish.PAUSE:
                logger.info("laid down for a pause")
                self._ledger.rest(self._claim)
                return None
            return self._close(JobState.CANCELLED, CANCELLED)
        except Hopeless as error:
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
        self._stopwatch.check()
        teacher = on_record(self._ledger, self._claim.job_id, Phase.TEACHER, TeacherResult) or self._teach()
        recipe = self._recipe if teacher.dataset is None else self._recipe.holding(teacher.dataset.key)
        setting = Setting(self._claim, self._ledger, self._artifacts, recipe, teacher)
        setting.known(Phase.SURVEY, SurveyResult) or self._survey(setting)
        self._prepare(setting)
        found = setting.known(Phase.SEARCH, SearchResult) or self._search(setting)
        chosen = setting.known(Phase.FINALISTS, FinalistsResult) or self._finalists(setting, found)
        exported = setting.known(Phase.EXPORT, ExportResult) or self._export(setting, chosen)
        self._check_times(setting, exported)

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
            elif isinstance(word, DatasetResult):
                self._opened(word)
            else:
                result: TeacherResult = word
                return self._finish(Phase.TEACHER, result)
        raise self._ended_early()

    def _opened(self, dataset: DatasetResult) -> None:
        if not dataset.skipped:
            return
        first = "; ".join(f"{fault.file}: {fault.message}" for fault in dataset.faults)
        logger.warning("%d of %d images cannot be used and are skipped: %s", dataset.skipped, dataset.images, first)
        self._note("IMAGES_SKIPPED", **dataset.model_dump(mode="json", exclude={"key"}))

    def _survey(self, setting: Setting) -> SurveyResult:
        self._enter(Phase.SURVEY)
        setting.made = self._stopwatch.tables()
        costs, levels = setting.costs, setting.levels
        budget = self._recipe.budget(costs)
        return self._finish(
            Phase.SURVEY,
            SurveyResult(
                space=costs.space.key,
                sites=len(costs.space.sites),
                size=float(costs.space.size),
                cost=teacher_cost(costs),
                smallest=best_cost(costs),
                limits=dict(budget.limits),
                levels=() if levels == (budget,) else tuple(dict(level.limits) for level in levels),
                times=table_results(costs, setting.tables),
            ),
        )

    def _prepare(self, setting: Setting) -> None:
        """Library, plan, elastic student and learned widths, as far as the search needs them."""
        weights, plan = self._spec.search.weights, None
        if self._recipe.needs_library:
            library = self._phase(setting, Phase.LIBRARY, LibraryResult, lambda: self._preparing(setting).library())
            plan = self._phase(setting, Phase.PLAN, PlanResult, lambda: self._preparing(setting).plan(library))
        if weights == "elastic":
            self._phase(
                setting,
                Phase.ELASTIC,
                ElasticResult,
                lambda: self._preparing(setting).elastic(plan, setting.tables),
            )
        if self._recipe.needs_structure:
            self._phase(
                setting,
                Phase.STRUCTURE,
                StructureResult,
                lambda: self._preparing(setting).structure(setting.tables),
            )

    def _preparing(self, setting: Setting) -> Preparing:
        return Preparing(
            self._claim,
            setting.workload,
            setting.costs,
            setting.levels,
            self._backend,
            self._watch,
            self._note,
            self._ended_early,
        )

    def _search(self, setting: Setting) -> SearchResult:
        self._enter(Phase.SEARCH)
        while True:
            revision = self._ledger.job(self._claim.job_id).revision
            searching = Searching(setting, self._backend, self._watch, self._stopwatch, self._note, self._go_on)
            try:
                return self._finish(Phase.SEARCH, searching.walk(), revision=revision)
            except Outdated:
                logger.info("the user has changed the job; looking whether more trials are wanted")

    def _finalists(self, setting: Setting, found: SearchResult) -> FinalistsResult:
        self._enter(Phase.FINALISTS)
        levels = setting.levels
        floor = None if self._goal is None else self._goal.floor(setting.teacher.validation_accuracy)
        trials = {trial.id: trial for trial in self._ledger.trials(self._claim.job_id)}
        groups = [[trials[trial] for trial in group] for group in found.groups]
        wanted = Everyone(groups) if floor is None else Bisection(groups, floor)
        session = FinalistsSession(self._claim, self._ledger, setting.scores, self._spec, wanted, self._watch)
        self._backend.run(session, setting.workload)
        self._go_on()
        ranked, failed = session.conclude()
        if not ranked:
            raise Hopeless(f"every finalist failed: {'; '.join(failed.values())}")
        front, volume = self._recipe.front(setting.costs), None
        if front is not None:
            best = front_of(ranked, trials, front)
            costs = [trials[result.trial].cost for result in best]
            volume = hypervolume(front.losses([result.accuracy for result in best], costs))
        elif self._goal is None or floor is None:
            best = best_of_levels(levels, ranked, trials, self._stopwatch.costing(teacher_cost(setting.costs)))
        else:
            best = [cheapest(ranked, trials, self._goal.cheapest, floor)]
        winners = self._examined(setting, [trials[result.trial] for result in best])
        return self._finish(
            Phase.FINALISTS,
            FinalistsResult(
                finalists=tuple(ranked),
                winner=winners[0].trial,
                accuracy=winners[0].accuracy,
                kl=winners[0].kl,
                shots=winners[0].shots,
                detection=winners[0].detection,
                winners=tuple(winners) if len(winners) > 1 else (),
                floor=floor,
                hypervolume=volume,
                evidence=evidence(
                    self._recipe.rungs,
                    setting.compared(),
                    {result.trial: result.accuracy for result in ranked},
                    self._spec.finalists.steps,
                    found.repeats,
                ),
            ),
        )

    def _examined(self, setting: Setting, trials: Sequence[Trial]) -> list[Winner]:
        """A trial that wins several levels is examined once."""
        grades = {trial.id: self._examine(setting, trial) for trial in {trial.id: trial for trial in trials}.values()}
        return [
            Winner(trial=trial.id, **asdict(grade.quality), shots=grade.shots, detection=grade.detection)
            for trial, grade in ((trial, grades[trial.id]) for trial in trials)
        ]

    def _examine(self, setting: Setting, trial: Trial) -> Grade:
        exam = Exam(
            self._claim.spec,
            setting.recipe.info,
            self._files,
            self._artifacts,
            setting.teacher.weights,
            trial.choices,
            setting.final_key(trial),
            setting.counts,
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
            grade: Grade = answer
            return grade
        raise self._ended_early()

    def _export(self, setting: Setting, chosen: FinalistsResult) -> ExportResult:
        self._enter(Phase.EXPORT)
        budgets, reference = self._budgets(setting, len(chosen.chosen)), teacher_cost(setting.costs)
        kept: dict[str, dict[int, Budget]] = {winner.trial: {} for winner in chosen.chosen}
        for level, (winner, budget) in enumerate(zip(chosen.chosen, budgets, strict=True)):
            kept[winner.trial][level] = budget
        exported: dict[str, tuple[Exported, dict[str, Artifact], Times]] = {}
        students = []
        for level, (winner, budget) in enumerate(zip(chosen.chosen, budgets, strict=True)):
            folder = student_folder(level, len(budgets))
            if winner.trial not in exported:
                exported[winner.trial] = self._exported(setting, winner.trial, folder, kept[winner.trial])
            student, files, times = exported[winner.trial]
            measured = self._stopwatch.values(times, reference, level)
            student = with_times(student, self._trial(student.trial).cost, times, measured)
            over = [verdict for verdict in budget.judge(student.cost) if not verdict.fits]
            if any(verdict.metric not in student.times for verdict in over):
                raise VerificationFailed(f"the finished student is over its budget: {over}")
            for name, artifact in files.items():
                self._ledger.keep(self._claim, f"{folder}/{name}", artifact, FILES[name])
            students.append(student)
        first = students[0].model_dump()
        return self._finish(Phase.EXPORT, ExportResult(**first, levels=tuple(students) if len(students) > 1 else ()))

    def _exported(
        self, setting: Setting, trial: str, folder: str, budgets: Mapping[int, Budget]
    ) -> tuple[Exported, dict[str, Artifact], Times]:
        """The student of a finalist, written, verified and stored under `folder`: its files by name, and its times."""
        written = write_student(setting.student(self._trial(trial)), self._info, self._spec.export)
        files = {
            name: self._artifacts.put(f"jobs/{self._claim.job_id}/{folder}/{name}", data)
            for name, data in written.files.items()
        }
        onnx = files.get("student.onnx")
        reference = teacher_cost(setting.costs)
        times = self._stopwatch.exported(self._trial(trial), onnx.key if onnx else None, budgets, reference)
        size = files["weights.safetensors"].bytes
        return Exported(trial=trial, cost=written.cost, bytes=size, deviation=written.deviation), files, times

    def _check_times(self, setting: Setting, exported: ExportResult) -> None:
        """Raises `Hopeless` when a student turned out too slow; it is there to be looked at and taken home."""
        if self._stopwatch.measurements:
            check_times(exported.students, self._budgets(setting, len(exported.students)))

    def _budgets(self, setting: Setting, students: int) -> Sequence[Budget]:
        """What the students must keep, one a student: the limits, where the levels are only the search's."""
        return [self._recipe.budget(setting.costs)] * students if self._own_levels else setting.levels

    @cached_property
    def _recipe(self) -> Recipe:
        return prepare(self._spec, self._files)

    @property
    def _info(self) -> DatasetInfo:
        return self._recipe.info

    @property
    def _goal(self) -> AccuracyGoal | None:
        return self._spec.budget.accuracy

    @property
    def _own_levels(self) -> bool:
        """Whether the levels are the search's own and no student has to be found for each."""
        return bool(self._recipe.small())

    @cached_property
    def _stopwatch(self) -> Stopwatch:
        return Stopwatch(
            self._claim,
            self._spec,
            Place(self._claim.spec, self._info, self._files, self._artifacts),
            self._backend,
            self._watch.stopping,
            self._note,
            self._ended_early,
        )

    def _trial(self, trial_id: str) -> Trial:
        return next(trial for trial in self._ledger.trials(self._claim.job_id) if trial.id == trial_id)

    def _phase(self, setting: Setting, phase: Phase, kind: type[R], walk: Callable[[], R]) -> R:
        """What is on record of a phase, or else what it comes to."""
        known = setting.known(phase, kind)
        if known is None:
            self._enter(phase)
            known = self._finish(phase, walk())
        return known

    def _enter(self, phase: Phase) -> None:
        self._go_on()
        self._ledger.enter(self._claim, phase)
        logger.info("%s: begun", phase)

    def _finish(self, phase: Phase, result: R, *, revision: int | None = None) -> R:
        self._watch.alive()
        self._ledger.finish(self._claim, phase, result.model_dump(mode="json"), revision=revision)
        logger.info("%s: done", phase)
        return result

    def _note(self, kind: str, **data: object) -> None:
        self._go_on()
        self._watch.alive()
        self._ledger.note(self._claim, kind, data)

    def _ended_early(self) -> Exception:
        return _Stopped() if self._watch.stopping() else RuntimeError("a worker ended without an answer")

    def _go_on(self) -> None:
        if self._watch.stopping():
            raise _Stopped

    def _close(self, state: JobState, reason: str) -> JobState:
        logger.info("%s%s", state, f": {reason}" if reason else "")
        self._ledger.close(self._claim, state, reason)
        return state
