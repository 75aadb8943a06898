"""
From a spec to everything it names: plugins loaded, options checked, the budget proved reachable.

`prepare` is cheap; `Recipe.plan` builds and traces the untrained teacher, which takes seconds, and is what lets a job
be refused before any machine is woken for it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from search.budget import AT_LEAST, Budget, ladder
from search.catalog import Catalog
from search.course import Coursed, blank, spans
from search.detector import Detector
from search.errors import BudgetImpossible, DataError, InvalidSpec, Unsupported, UserError
from search.files import Files
from search.front import Front
from search.latency.model import Timed
from search.latency.quick import quickly
from search.library import lots
from search.plan import Checked, plan
from search.planner import Planner
from search.plugins import (
    Aiming,
    Dataset,
    DatasetInfo,
    Distiller,
    Learning,
    Screened,
    Skipped,
    Split,
    SplitName,
    Start,
    Strategy,
    Teacher,
    tasks_of,
)
from search.projection import Projector
from search.proof import witness
from search.rungs import Rungs
from search.space import Site
from search.spec import PARTS, JobSpec, Pick, SpaceSpec, Trained
from search.strategies.wrappers import Distinct, Projected, Started
from search.surgery import Survey, survey
from search.teachers.weights import load_weights

Costs = Survey | Timed
"""What candidates cost: a survey's counts, or those and predicted times."""


@dataclass(frozen=True)
class Recipe:
    """A spec with all its plugins made. Nothing is trained or downloaded by having one."""

    spec: JobSpec
    files: Files
    dataset: Dataset
    teacher: Teacher
    distillers: Mapping[Trained, Distiller]
    """Of trials (`search`) and of `finalists`."""
    strategy: Strategy
    known: DatasetInfo | None = None

    @cached_property
    def info(self) -> DatasetInfo:
        """
        Raises:
            DataError: the dataset cannot be read.
            UserError: it is for another task than the job.
        """
        info = self.known or self.dataset.info()
        if info.task != self.spec.task:
            raise UserError(
                f"`{self.spec.dataset.name}` is a dataset of {info.task}, and the job is one of {self.spec.task}; "
                "name another, or give the job its `task`",
                pointer="/dataset/name",
            )
        return info

    @cached_property
    def skipped(self) -> Skipped:
        """
        The images that splits go without. All images are opened, unless that was done on this machine before.

        Raises:
            DataError: the dataset cannot be read, or too many of its images cannot be used.
        """
        return self.dataset.skipped() if isinstance(self.dataset, Screened) else Skipped()

    @cached_property
    def _content(self) -> str:
        """Names the splits by what they hold: the dataset's key, less what is skipped."""
        key, skipped = self.dataset.info().key, self.skipped.key
        return f"{key}-{skipped}" if skipped else key

    def opened(self) -> Recipe:
        """The same once all images were opened, and the key of its `info` names what is skipped too. Raises as that."""
        return self.holding(self._content)

    def holding(self, key: str) -> Recipe:
        """The same for a dataset that was opened before, when its key was this one."""
        return replace(self, known=replace(self.info, key=key))

    def split(self, name: SplitName) -> Split:
        """
        A split of the dataset.

        Raises:
            DataError: it cannot be read, or is not the one that `known` was said of. Of another listing of its files,
                or by a decoder that refuses others of them, an image could be tested that was trained on.
        """
        if self.known is not None and self.known.key != self._content:
            raise DataError(
                "the dataset is not what it was when the job opened it: files were changed, added or removed, or this "
                "machine decodes images otherwise than the others; restore it, or submit the job again"
            )
        return self.dataset.split(name)

    @property
    def rungs(self) -> Rungs:
        search = self.spec.search
        return Rungs(search.rungs, search.reduction, search.exempt, search.seed, costs=self._front)

    @property
    def _front(self) -> tuple[str, ...]:
        return () if self.spec.budget.front is None else self.spec.budget.front.costs

    def front(self, found: Costs) -> Front | None:
        """What is to be found when no budget says what an accuracy may cost; None when one does."""
        chance = 0.0 if self.spec.task == "detection" else 1 / len(self.info.classes)
        return Front(self._front, teacher_cost(found), chance) if self._front else None

    @property
    def needs_library(self) -> bool:
        """Whether its strategy begins with the planner's optima, or its students with blocks from the library."""
        return self.strategy.needs_plan or self.spec.search.weights == "library"

    @property
    def needs_structure(self) -> bool:
        """Whether its strategy begins with widths that were learned, or its students with the weights of those."""
        strategy = self.strategy
        learning = isinstance(strategy, Learning) and strategy.needs_structure
        return learning or self.spec.search.weights == "structure"

    @cached_property
    def teacher_key(self) -> str:
        """Names the teacher's weights by all that decides them, so that later jobs can share them."""
        teacher = self.spec.teacher
        decides: dict[str, Any] = {"name": teacher.name, "options": teacher.options, "dataset": self.info.key}
        if teacher.weights is not None:
            location = self.files.resolve(teacher.weights, pointer="/teacher/weights")
            with location.open("rb") as file:
                decides["weights"] = hashlib.file_digest(file, "sha256").hexdigest()
        else:
            training = teacher.training.model_dump(mode="json")
            decides |= {"epochs": teacher.epochs, "training": training, "seed": self.spec.search.seed}
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:24]

    def build_teacher(self) -> nn.Module:
        """The teacher's architecture, with the weights of the spec's file or, without one, untrained."""
        model = self.teacher.build(self.info.shape, len(self.info.classes), seed=self.spec.search.seed)
        if self.spec.teacher.weights is not None:
            load_weights(model, self.files.resolve(self.spec.teacher.weights, pointer="/teacher/weights"))
        return model

    def survey(self, teacher: nn.Module) -> Survey:
        """Raises `Unsupported` when the network cannot be traced."""
        return survey_for(self.info, teacher, self.spec.space)

    def expected(self, found: Survey, unmeasured: Collection[str] = ()) -> Costs:
        """
        What candidates cost, as far as that is known before a job: times, where they are limited, from the teacher and
        the least student alone, measured on this machine within seconds. `unmeasured` metrics are left out.

        Raises:
            UserError: a time cannot be measured here.
        """
        measurements = {
            metric: how for metric, how in self.spec.budget.measurements.items() if metric not in unmeasured
        }
        return quickly(found, self.info.shape, measurements) if measurements else found

    def budget(self, found: Costs) -> Budget:
        """
        The limits worked out against the teacher; of a ladder, those of its loosest level.

        Raises:
            UserError: a limit is of a cost that the survey does not know.
        """
        return ladder(self.spec.budget.limits, teacher_cost(found))[0]

    def levels(self, found: Costs, unmeasured: Collection[str] = ()) -> tuple[Budget, ...]:
        """
        The budgets to search under, loosest first and each within the one before: the ladder's, or the only one. With
        an accuracy to be kept, or a front to be found, they are ours: six steps from the teacher down to the smallest
        student, even on a logarithmic scale of the cost to be made small (of a front's costs the first), the other
        limits holding at each. The limits of `unmeasured` metrics are left out.

        Raises:
            BudgetImpossible: no student keeps all limits of a level.
            UserError: a limit of an unknown cost, or levels that turn out no tighter than those before them.
        """
        teacher, planner = teacher_cost(found), Planner(found.polynomials)
        limits = {metric: steps for metric, steps in self.spec.budget.limits.items() if metric not in unmeasured}
        levels = ladder(limits, teacher)
        for level, budget in enumerate(levels):
            try:
                witness(planner, budget, teacher)
            except BudgetImpossible as error:
                ladders = [metric for metric, steps in limits.items() if len(steps) > 1]
                raise error.under_level(level, ladders) from None
        for metric, pointer in self.small():
            if metric not in teacher and metric not in unmeasured:
                raise UserError(f"no cost is called `{metric}`", pointer=pointer, allowed=sorted(teacher))
        cheapest = next((metric for metric, _ in self.small()), None)
        if cheapest is None or cheapest in unmeasured:
            return levels
        least = planner.best(cheapest, levels[0].limits).value
        return levels if least is None else _steps(levels[0], cheapest, int(least), teacher[cheapest])

    def small(self) -> list[tuple[str, str]]:
        """The costs that shall be small though no limit says how small, and where the spec has them."""
        goal = self.spec.budget.accuracy
        if goal is not None:
            return [(goal.cheapest, "/budget/accuracy/cheapest")]
        return [(metric, f"/budget/front/costs/{at}") for at, metric in enumerate(self._front)]

    def open_strategy(self, found: Costs, levels: Sequence[Budget], starts: Sequence[Start] = ()) -> Strategy:
        """
        The strategy with its proposals kept distinct, and within the levels in turn; `starts` (`search.starts`) are
        proposed before all else. One that can look for a front by itself proposes what it likes within the limits.
        """
        projectors = [Projector(found, budget) for budget in levels]
        if self._front and isinstance(self.strategy, Aiming):
            self.strategy.aim(self._front)
            own = self.budget(found).limits
            limits = {metric: levels[0].limits[metric] for metric in own} | {
                metric: own[metric] for metric in own.keys() & {self._front[0]}
            }
            projectors = [Projector(found, Budget(limits), refill=False)]
        projected = Projected(self.strategy, *projectors)
        strategy = Distinct(Started(projected))
        strategy.open(found.space, self.spec.search.seed, starts)
        return strategy

    def plan(self) -> dict[str, Any]:
        """
        What the job would do, as JSON: exact bounds, every level with a student that keeps it, time, cost and report.

        Raises:
            UserError: whatever makes the job impossible, with a pointer and a remedy.
        """
        checked, sites = self.check(), list[Site]()
        if self.needs_library:
            space = checked.found.space
            sites = [space.by_name[lot.site] for lot in lots(space, self.spec.search.library)]
        return plan(
            self.spec,
            self.rungs,
            self.info,
            self.dataset.sizes(),
            self.distillers,
            checked,
            sites,
            learns=self.needs_structure,
        )

    def check(self) -> Checked:
        """
        What is known of the job when it can be done.

        Limits of times whose runtime is not to be had on this machine are left to the workers.

        Raises:
            UserError: whatever makes the job impossible, with a pointer and a remedy.
        """
        began = time.monotonic()
        found = self.survey(self.build_teacher())
        seconds = time.monotonic() - began
        unmeasured: list[str] = []
        while True:
            try:
                costs = self.expected(found, unmeasured)
                break
            except UserError as error:
                elsewhere = [metric for metric in _TIMES if error.errors[0].pointer == f"/budget/{metric}/runtime"]
                if not elsewhere:
                    raise
                unmeasured += elsewhere
        self._check_distillers(found)
        return Checked(found, costs, self.levels(costs, unmeasured), unmeasured, seconds)

    def _check_distillers(self, found: Survey) -> None:
        """Opens the course of the least student with each, on a blank image."""
        for part, distiller in self.distillers.items():
            if not isinstance(distiller, Coursed):
                continue
            pointer = self.spec.distiller_pointer(part)
            material = blank(self.spec, part, self.info, found)
            try:
                course = distiller.course(found.graft(found.space.least()), material)
            except UserError as error:
                raise error.under(f"{pointer}/options") from None
            last, first_rung = spans(course.stages, material.steps)[-1], self.spec.search.rungs[0]
            if part == "search" and last.start >= first_rung:
                raise UserError(
                    f"`{self.spec.distiller(part).name}` comes to its last stage, `{last.stage.name}`, after step "
                    f"{last.start} of {material.steps}, and the first rung compares trials at step {first_rung}, when "
                    "they cannot tell classes apart yet; name it in `finalists.distill`, and one of one stage here",
                    pointer=pointer,
                )


def teacher_cost(found: Costs) -> dict[str, int]:
    """Of the teacher itself, by metric."""
    return dict(found.cost)


def best_cost(found: Costs) -> dict[str, int]:
    """By metric what no student does better: the smallest cost, the largest throughput."""
    bounds = found.bounds()
    return {metric: most if metric in AT_LEAST else least for metric, (least, most) in bounds.items()}


def _steps(budget: Budget, cheapest: str, least: int, teacher: int) -> tuple[Budget, ...]:
    """
    The middles of equal parts of the way down to `least`, which can be reached: neither the teacher nor the one
    smallest student is a level.
    """
    most = max(least, min(teacher, budget.limits.get(cheapest, teacher)))
    values = {round(most * (least / most) ** ((step + 0.5) / _STEPS)) for step in range(_STEPS)}
    return tuple(Budget({**budget.limits, cheapest: value}) for value in sorted(values, reverse=True))


_STEPS = 6
_TIMES = ("latency", "throughput")


def survey_for(info: DatasetInfo, teacher: nn.Module, options: SpaceSpec) -> Survey:
    """The survey of a teacher of the dataset's images; the same for everyone who asks. Raises `Unsupported`."""
    example = torch.randn(2, *info.shape, generator=torch.Generator().manual_seed(0))
    found = survey(teacher, example, options)
    if not isinstance(teacher, Detector) and found.outputs != ((1, len(info.classes)),):
        raise Unsupported(
            f"the network answers an image with {' and '.join(map(str, found.outputs))}; "
            f"a classifier of this dataset answers with logits {(1, len(info.classes))}"
        )
    return found


def _without_teacher(recipe: Recipe) -> list[UserError]:
    """All that asks for a teacher in a job that has none."""
    spec = recipe.spec
    found = dict[str, str]()
    for part, distiller in recipe.distillers.items():
        if distiller is not None and distiller.needs_teacher:
            pointer = spec.distiller_pointer(part)
            name = spec.distiller(part).name
            found[f"{pointer}/name"] = f"`{name}` learns from a teacher; `pcl` and `supervised` do not"
    if spec.search.weights in ("library", "elastic", "structure"):
        found["/search/weights"] = f"`{spec.search.weights}` is distilled from a teacher; write `slice` or `scratch`"
    if recipe.strategy is not None and recipe.strategy.needs_plan:
        name = spec.search.strategy.name
        found["/search/strategy/name"] = f"`{name}` begins with what a teacher says; `evolution` or `tpe` does not"
    elif recipe.strategy is not None and recipe.needs_structure and spec.search.weights != "structure":
        found["/search/strategy/name"] = "widths are learned from a teacher; `evolution` or `tpe` asks for none"
    if spec.search.rungs[0] == 0:
        found["/search/rungs/0"] = "untrained networks are compared by how near to the teacher they are; begin above 0"
    if spec.budget.accuracy is not None and spec.budget.accuracy.max_drop is not None:
        found["/budget/accuracy/max_drop"] = "there is no teacher to stay near to; write `at_least`"
    why = "with `teacher.epochs: 0` and no `teacher.weights` there is no teacher, and"
    return [UserError(f"{why} {said}", pointer=pointer) for pointer, said in found.items()]


def _detecting(recipe: Recipe) -> list[UserError]:
    """All that a job of detection asks for which only classifiers have."""
    spec, found = recipe.spec, dict[str, str]()
    if spec.search.weights in ("library", "elastic", "structure"):
        found["/search/weights"] = f"`{spec.search.weights}` is made for classifiers; write `slice` or `scratch`"
    if recipe.strategy is not None and recipe.strategy.needs_plan:
        name = spec.search.strategy.name
        found["/search/strategy/name"] = f"`{name}` begins with harms to a classifier; `evolution` or `tpe` does not"
    elif recipe.strategy is not None and recipe.needs_structure and spec.search.weights != "structure":
        found["/search/strategy/name"] = "widths are learned of classifiers; `evolution` or `tpe` asks for none"
    if spec.search.rungs[0] == 0:
        found["/search/rungs/0"] = "untrained networks are compared by a classifier's logits; begin above 0"
    for metric, pointer in (*((metric, f"/budget/{metric}") for metric in spec.budget.limits), *recipe.small()):
        if metric in _TIMES:
            found[pointer] = "the time from an image to its boxes is not measured; limit `macs` instead"
    if spec.space.resolutions:
        found["/space/resolutions"] = "boxes are in pixels of the images as they are; leave it out"
    return [UserError(f"with `task: detection`, {said}", pointer=pointer) for pointer, said in found.items()]


def _misplaced(recipe: Recipe) -> list[UserError]:
    """Teachers and distillers that are for another task."""
    spec, found = recipe.spec, list[UserError]()
    picked: list[tuple[object, str, str]] = [(recipe.teacher, spec.teacher.name, "/teacher/name")]
    for part, distiller in recipe.distillers.items():
        picked.append((distiller, spec.distiller(part).name, f"{spec.distiller_pointer(part)}/name"))
    for plugin, name, pointer in dict.fromkeys(picked):
        if plugin is not None and spec.task not in tasks_of(plugin):
            said = f"`{name}` is for {' and '.join(tasks_of(plugin))}, and the job is one of {spec.task}"
            found.append(UserError(said, pointer=pointer))
    return found


def prepare(spec: JobSpec, files: Files, *, catalog: Catalog | None = None, info: DatasetInfo | None = None) -> Recipe:
    """
    Loads every plugin the spec names and checks its options; all mistakes are gathered before any is raised.

    Who has the dataset's `info` already gives it, and the dataset is not looked at again.

    Raises:
        InvalidSpec: unknown names, or options that a plugin does not take.
    """
    catalog = catalog or Catalog()
    mistakes: list[UserError] = []

    def make(kind: str, pick: Pick, pointer: str, **context: Any) -> Any:
        try:
            return catalog.make(kind, pick, **context)
        except UserError as error:
            mistakes.append(error.under(pointer))
            return None

    pointers = {part: spec.distiller_pointer(part) for part in PARTS}
    made = {pointers[part]: spec.distiller(part) for part in PARTS}
    distillers = {pointer: make("distillers", pick, pointer) for pointer, pick in made.items()}
    recipe = Recipe(
        spec=spec,
        files=files,
        dataset=make("datasets", spec.dataset, "/dataset", files=files),
        teacher=make("teachers", spec.teacher, "/teacher"),
        distillers={part: distillers[pointer] for part, pointer in pointers.items()},
        strategy=make("strategies", spec.search.strategy, "/search/strategy"),
        known=info,
    )
    costs = {metric: f"/budget/{metric}" for metric in spec.budget.limits}
    for metric, pointer in recipe.small():
        costs.setdefault(metric, pointer)
    if not spec.teacher.taught:
        mistakes += _without_teacher(recipe)
    mistakes += _misplaced(recipe)
    if spec.task == "detection":
        mistakes += _detecting(recipe)
    for metric, pointer in costs.items():
        try:
            catalog.load("costs", metric)
        except UserError as error:
            mistakes.append(InvalidSpec([replace(found, pointer=pointer) for found in error.errors]))
    if mistakes:
        raise InvalidSpec([found for mistake in mistakes for found in mistake.errors])
    return recipe
