"""
A teacher or a dataset looked at by itself, before any job names it: what is told of it once it is registered.

Both are plain JSON. Nothing is trained, and of what a user uploaded nothing is run.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import Any

from search.catalog import Catalog
from search.errors import UserError
from search.files import Files
from search.plugins import Counted, Dataset, Inspected, Teacher, tasks_of
from search.quality import per_class
from search.recipe import survey_for
from search.spec import Pick, SpaceSpec, TeacherSpec
from search.teachers.weights import load_weights


def teacher_facts(teacher: TeacherSpec, dataset: Pick, files: Files) -> dict[str, Any]:
    """
    What the network costs for an image of the dataset, and what it answers; its weights fit when this returns.

    Raises:
        UserError: it cannot be built for that dataset, surveyed, or given those weights; pointers begin at `/teacher`
            or `/dataset`.
    """
    info = _made(dataset, files).info()
    plugin: Teacher = _make("teachers", teacher, "/teacher")
    if info.task not in tasks_of(plugin):
        said = f"`{teacher.name}` is for {' and '.join(tasks_of(plugin))}"
        raise UserError(f"{said}, and `{dataset.name}` is a dataset of {info.task}", pointer="/teacher/name")
    model = plugin.build(info.shape, len(info.classes))
    digest = None
    if teacher.weights is not None:
        path = files.resolve(teacher.weights, pointer="/teacher/weights")
        load_weights(model, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "task": info.task,
        "classes": len(info.classes),
        "shape": list(info.shape),
        "cost": dict(survey_for(info, model, SpaceSpec()).cost),
        "sha256": digest,
    }


def dataset_report(dataset: Pick, files: Files, seconds: float) -> dict[str, Any]:
    """
    What the dataset has, and what is wrong with its files, which are looked at for about `seconds` at most.

    Raises:
        UserError: no job could use it; pointers begin at `/dataset`.
    """
    found = _made(dataset, files)
    info = found.info()
    of_class = found.counts() if isinstance(found, Counted) else per_class(found.split("train").labels, info)
    return {
        "task": info.task,
        "shape": list(info.shape),
        "images": dict(found.sizes()),
        "classes": [{"name": name, "training": int(count)} for name, count in zip(info.classes, of_class, strict=True)],
        "files": asdict(found.inspect(seconds)) if isinstance(found, Inspected) else None,
    }


def _made(dataset: Pick, files: Files) -> Dataset:
    found: Dataset = _make("datasets", dataset, "/dataset", files=files)
    return found


def _make(kind: str, pick: Pick, pointer: str, **context: Any) -> Any:
    try:
        return Catalog().make(kind, pick, **context)
    except UserError as error:
        raise error.under(pointer) from None
