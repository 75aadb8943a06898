"""The one look at the test set: the chosen student against its teacher, where the compute is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.batches import Cached, Normalise
from search.files import Files
from search.plugins import DatasetInfo
from search.quality import Grade, graded, outputs
from search.recipe import prepare
from search.spec import read_spec
from search.teachers.weights import load_weights
from search.training import Pupil
from workers.ports import Artifacts


@dataclass(frozen=True)
class Exam:
    """Names the student by its choices and its last checkpoint; picklable."""

    spec: Mapping[str, Any]
    info: DatasetInfo
    files: Files
    artifacts: Artifacts
    teacher: str
    choices: Mapping[str, int]
    checkpoint: str
    counts: tuple[int, ...]
    """Training images of each class."""
    device: str


def examine(exam: Exam) -> Iterator[Grade]:
    """Yields how the student does on the test set."""
    spec = read_spec(exam.spec)
    recipe = prepare(spec, exam.files, info=exam.info)
    teacher = recipe.teacher.build(exam.info.shape, len(exam.info.classes))
    load_weights(teacher, exam.artifacts.get(exam.teacher))
    found = recipe.survey(teacher)
    pupil = Pupil(found.graft(found.space.candidate(exam.choices)).to(exam.device))
    pupil.restore(exam.artifacts.get(exam.checkpoint))
    test, normalise = recipe.split("test"), Normalise(exam.info, exam.device)
    answer = outputs(pupil.model, test.images, normalise)
    compared = spec.teacher.taught and spec.task == "classification"
    target = outputs(teacher.to(exam.device), test.images, normalise) if compared else answer
    data = Cached(test.images, test.labels, target, normalise)
    yield graded(answer, data, np.array(exam.counts), taught=compared)
