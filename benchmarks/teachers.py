"""
Teachers for benchmarks, trained once and kept.

They are trained, looked at and their outputs cached by the product's own teacher phase, with its defaults: 20 epochs,
four fixed views. Files lie in `.stillhouse/benchmarks` of the checkout, or where STILLHOUSE_BENCH_HOME says.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from search.batches import Cached, Normalise
from search.budget import Budget, Limit
from search.files import Files, exclusive
from search.quality import outputs
from search.recipe import Recipe, prepare
from search.spec import JobSpec, read_spec
from search.surgery import Survey
from search.teachers.weights import load_weights
from workers.artifacts import FolderArtifacts
from workers.results import TeacherResult
from workers.teaching import Epoch, Lesson, teach, training_arrays

DIVISOR = 2
"""Channel counts are multiples of this, as in examples/cluttered_digits.yaml: the teachers are tiny."""


@dataclass(frozen=True)
class Bench:
    """A teacher on its dataset: all that a method may learn from, and the test set that judges its student."""

    recipe: Recipe
    result: TeacherResult
    teacher: nn.Module
    survey: Survey
    train: Cached
    """Four views of the training set, with the teacher's logits."""
    validation: Cached

    @property
    def spec(self) -> JobSpec:
        """A job on this teacher with all defaults; its budget is no part of what was done."""
        return self.recipe.spec

    @cached_property
    def test(self) -> Cached:
        split, normalise = self.recipe.dataset.split("test"), self.train.normalise
        return Cached(split.images, split.labels, outputs(self.teacher, split.images, normalise), normalise)

    @property
    def example(self) -> torch.Tensor:
        """Two images of the dataset's shape, `[2, channels, size, size]`."""
        return torch.randn(2, *self.recipe.info.shape, generator=torch.Generator().manual_seed(0))

    def budget(self, **limits: str) -> Budget:
        """`budget(macs="10%")`, worked out against the teacher."""
        return Budget.of({metric: Limit.read(metric, text) for metric, text in limits.items()}, self.survey.cost)


def home() -> Path:
    """Where benchmarks keep what they have found."""
    kept = os.environ.get("STILLHOUSE_BENCH_HOME")
    return Path(kept) if kept else Path(__file__).parents[1] / ".stillhouse" / "benchmarks"


def spec_of(teacher: str, dataset: str, seed: int = 0) -> JobSpec:
    return read_spec(
        {
            "teacher": {"name": teacher},
            "dataset": {"name": dataset},
            "budget": {"macs": "100%"},
            "space": {"divisor": DIVISOR},
            "search": {"seed": seed},
        }
    )


def kept(teacher: str, dataset: str, seed: int = 0) -> Bench:
    """
    The teacher of this name on the dataset of this name, both with their default options; trained when there is none
    yet, while others who ask for one wait. `seed` is that of the teacher's weights, its training and the views.
    """
    return kept_by(spec_of(teacher, dataset, seed))


def kept_by(spec: JobSpec) -> Bench:
    """The same of any job's teacher."""
    folder, name = home(), f"{spec.teacher.name}-{spec.dataset.name}-{spec.search.seed}"
    files, artifacts = Files(folder / "cache"), FolderArtifacts(folder / "artifacts")
    with exclusive(folder / f"{name}.lock"):
        result = _taught(Lesson(spec.model_dump(mode="json"), files, artifacts, "cpu"), name)
    recipe = prepare(spec, files)
    model = recipe.build_teacher()
    load_weights(model, artifacts.get(result.weights))
    model.eval()
    arrays, normalise = training_arrays(recipe, result, artifacts), Normalise(recipe.info)
    parts: Mapping[str, Cached] = {
        name: Cached(arrays[f"{name}_images"], arrays[f"{name}_labels"], arrays[f"{name}_logits"], normalise)
        for name in ("train", "validation")
    }
    return Bench(recipe, result, model, recipe.survey(model), parts["train"], parts["validation"])


def _taught(lesson: Lesson, name: str) -> TeacherResult:
    began, last = time.process_time(), None
    for last in teach(lesson):
        if isinstance(last, Epoch):
            done = f"epoch {last.done} of {last.total}, validation {last.accuracy:.2%}"
            print(f"{name}: {done}, {time.process_time() - began:.0f} s", flush=True)
    assert isinstance(last, TeacherResult)
    return last
