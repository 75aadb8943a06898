"""A real job that is small enough for a test: a tiny network on scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from search.files import Files
from search.recipe import Recipe, prepare
from search.spec import JobSpec, read_spec
from workers.ports import Artifacts
from workers.results import TeacherResult
from workers.teaching import Lesson, teach, training_arrays
from workers.workload import Workload


def small_spec(**changes: Any) -> JobSpec:
    document: dict[str, Any] = {
        "teacher": {"name": "small_resnet", "options": {"width": 4, "depth": 1}, "epochs": 2},
        "dataset": {"name": "digits"},
        "budget": {"macs": "50%"},
        "space": {"divisor": 1},
        "search": {
            "strategy": {"name": "random"},
            "weights": "slice",
            "trials": 4,
            "rungs": [2, 4],
            "reduction": 2,
            "views": 1,
            "calibration_batches": 1,
        },
        "finalists": {"count": 2, "steps": 4, "checkpoint_every": 2},
        "export": {"onnx": False},
    }
    return read_spec(document | changes)


def small_workload(spec: JobSpec, artifacts: Artifacts, cache: Path) -> tuple[Recipe, Workload]:
    """Teaches the teacher here and now."""
    files = Files(cache=cache)
    document = spec.model_dump(mode="json")
    *_, result = teach(Lesson(document, files, artifacts, "cpu"))
    assert isinstance(result, TeacherResult)
    recipe = prepare(spec, files)
    arrays = training_arrays(recipe, result, artifacts)
    return recipe, Workload(document, recipe.info, files, artifacts, result.weights, arrays)
