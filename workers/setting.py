"""What a driver knows of its job once the teacher is there, each thing worked out from the record when first needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
from torch import nn

from search.budget import Budget, level_of
from search.latency.model import Timed
from search.quality import per_class
from search.recipe import Costs, Recipe
from search.surgery import Survey
from search.teachers.weights import load_weights
from search.training import Pupil
from search.trial import Trial
from workers.ports import Artifacts, Claim, Ledger, Phase
from workers.results import ElasticResult, LibraryResult, Result, StructureResult, SurveyResult, TeacherResult
from workers.scores import Scores
from workers.teaching import training_arrays
from workers.timing import read_table
from workers.workload import Workload

R = TypeVar("R", bound=Result)


def on_record(ledger: Ledger, job_id: str, phase: Phase, kind: type[R]) -> R | None:
    """The result of a phase; None when it has none yet."""
    record = ledger.job(job_id).phases.get(phase)
    return kind.model_validate(record.result) if record is not None and record.result is not None else None


@dataclass
class Setting:
    """`tables` are those of measured metrics, once the survey has made them."""

    claim: Claim
    ledger: Ledger
    artifacts: Artifacts
    recipe: Recipe
    teacher: TeacherResult
    made: Mapping[str, str] | None = field(default=None, init=False)
    """Artifacts with tables of times by metric, made by this driver and not yet on record."""

    def known(self, phase: Phase, kind: type[R]) -> R | None:
        return on_record(self.ledger, self.claim.job_id, phase, kind)

    @cached_property
    def survey(self) -> Survey:
        recipe, info = self.recipe, self.recipe.info
        model = recipe.teacher.build(info.shape, len(info.classes), seed=recipe.spec.search.seed)
        load_weights(model, self.artifacts.get(self.teacher.weights))
        return recipe.survey(model)

    @property
    def tables(self) -> Mapping[str, str]:
        """Artifacts with the tables of times, by metric."""
        if self.made is None:
            surveyed = self.known(Phase.SURVEY, SurveyResult)
            self.made = {metric: result.table for metric, result in surveyed.times.items()} if surveyed else {}
        return self.made

    @cached_property
    def costs(self) -> Costs:
        """What candidates cost: counted, and their times predicted from the tables."""
        read = {metric: read_table(self.artifacts, key) for metric, key in self.tables.items()}
        return Timed(self.survey, read) if read else self.survey

    @cached_property
    def levels(self) -> tuple[Budget, ...]:
        """The levels to search under."""
        return self.recipe.levels(self.costs)

    @property
    def workload(self) -> Workload:
        """What workers need, with the donor of the students' weights once that is there."""
        if self.recipe.spec.search.weights == "library" and (library := self.known(Phase.LIBRARY, LibraryResult)):
            return replace(self._workload, library=library.index)
        if elastic := self.known(Phase.ELASTIC, ElasticResult):
            return replace(self._workload, elastic=elastic.key)
        if self.recipe.spec.search.weights == "structure" and (learned := self.known(Phase.STRUCTURE, StructureResult)):
            return replace(self._workload, structure=learned.weights)
        return self._workload

    @cached_property
    def _workload(self) -> Workload:
        return Workload(
            spec=self.claim.spec,
            info=self.recipe.info,
            files=self.recipe.files,
            artifacts=self.artifacts,
            teacher=self.teacher.weights,
            arrays=training_arrays(self.recipe, self.teacher, self.artifacts),
        )

    @property
    def counts(self) -> tuple[int, ...]:
        """Training images of each class."""
        counted = per_class(np.asarray(self._workload.arrays["train_labels"]), self.recipe.info)
        return tuple((counted // self.recipe.spec.search.views).tolist())

    @property
    def scores(self) -> Scores:
        """What networks scored in this setting before."""
        spec = self.recipe.spec
        donor: str = spec.search.weights
        if donor == "library" and (library := self.known(Phase.LIBRARY, LibraryResult)):
            donor = library.index
        elif elastic := self.known(Phase.ELASTIC, ElasticResult):
            donor = elastic.key
        elif donor == "structure" and (learned := self.known(Phase.STRUCTURE, StructureResult)):
            donor = " ".join(learned.weights)
        space, dataset = self.survey.space, self.recipe.info.key
        return Scores(self.artifacts, spec, space, self.teacher.weights, dataset, donor)

    def final_key(self, trial: Trial) -> str:
        """Of the checkpoint that a finalist's long training ends with."""
        return self.scores.final_key(trial.choices, trial.rung - 1, self.recipe.spec.finalists.steps)

    def student(self, trial: Trial) -> nn.Module:
        """A finalist's network, as its long training left it."""
        pupil = Pupil(self.survey.graft(self.survey.space.candidate(trial.choices)))
        pupil.restore(self.artifacts.get(self.final_key(trial)))
        return pupil.model.eval()

    def compared(self) -> list[list[Trial]]:
        """The trials of each level, which are compared with each other."""
        groups: list[list[Trial]] = [[] for _ in self.levels]
        for trial in self.ledger.trials(self.claim.job_id):
            groups[level_of(self.levels, trial.cost)].append(trial)
        return groups
