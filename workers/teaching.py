"""
The teacher phase, done where the compute is: find or train the teacher, look how good it is, cache its outputs.

Teachers are kept by a key of all that decides their weights, and their weights by the hash of the bytes, so a second
job on the same teacher starts with the search.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays
from torch import nn

from search.batches import Augmented, Cached, Normalise, views
from search.distillers.supervised import Supervised
from search.errors import NonFinite, UserError
from search.files import Files
from search.plugins import Split, SplitName
from search.quality import Grade, graded, merit, outputs, per_class
from search.recipe import Recipe, prepare
from search.spec import read_spec
from search.teachers.weights import load_weights, save_weights
from search.training import Pupil, Stretch, train
from workers.ports import Artifacts
from workers.results import Broken, DatasetResult, TeacherResult
from workers.workload import Arrays

_ALIVE_STEPS = 20
_SEEN: tuple[SplitName, ...] = ("test", "validation")
"""Where it is said how good a teacher is."""


@dataclass(frozen=True)
class Lesson:
    """What the teacher phase needs to be told; picklable."""

    spec: Mapping[str, Any]
    files: Files
    artifacts: Artifacts
    device: str


@dataclass(frozen=True, slots=True)
class Epoch:
    """Progress of the teacher's training; `accuracy` is on validation, 0..1."""

    done: int
    total: int
    loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Alive:
    """Work goes on: a long epoch must not look like a worker that hangs."""


def teach(lesson: Lesson) -> Iterator[DatasetResult | Epoch | Alive | TeacherResult]:
    """
    Opens the whole dataset and yields what was found, so that a corrupt one costs no training. Then yields an `Epoch`
    after every epoch of training, if the teacher has to be trained, and a `TeacherResult` at the end; `Alive` now and
    then between them. Of a job without a teacher the untrained network is all there is.

    Raises:
        UserError: the dataset or the weights file cannot be used, or the training diverges.
    """
    spec = read_spec(lesson.spec)
    recipe = prepare(spec, lesson.files).opened()
    dataset = _opened(recipe)
    yield dataset
    kept = f"teachers/{recipe.teacher_key}/teacher.json"
    if lesson.artifacts.has(kept):
        found = TeacherResult.model_validate_json(lesson.artifacts.get(kept))
        _cache_outputs(lesson, recipe, found)
        source = "kept" if spec.teacher.taught else found.source
        yield found.model_copy(update={"source": source, "dataset": dataset})
        return
    model = recipe.build_teacher().to(lesson.device)
    if spec.teacher.weights is None:
        yield from _train(model, recipe, lesson)
    normalise = Normalise(recipe.info, lesson.device)
    reached = _reached(model, recipe, normalise) if spec.teacher.taught else {}
    weights = save_weights(model)
    key = f"teachers/{recipe.teacher_key}/{hashlib.sha256(weights).hexdigest()[:24]}.safetensors"
    lesson.artifacts.put(key, weights)
    result = TeacherResult(
        name=spec.teacher.name,
        key=recipe.teacher_key,
        source="weights" if spec.teacher.weights else "trained" if spec.teacher.taught else "untrained",
        weights=key,
        accuracy=reached["test"].quality.accuracy if reached else None,
        validation_accuracy=reached["validation"].quality.accuracy if reached else None,
        shots=reached["test"].shots if reached else {},
        detection=reached["test"].detection if reached else {},
    )
    lesson.artifacts.put(kept, result.model_dump_json(exclude={"dataset"}).encode())
    _cache_outputs(lesson, recipe, result)
    yield result.model_copy(update={"dataset": dataset})


def _opened(recipe: Recipe) -> DatasetResult:
    skipped = recipe.skipped
    faults = tuple(Broken(**asdict(fault)) for fault in skipped.faults)
    return DatasetResult(key=recipe.info.key, skipped=skipped.count, images=skipped.images, faults=faults)


def _reached(model: nn.Module, recipe: Recipe, normalise: Normalise) -> dict[SplitName, Grade]:
    counts = per_class(recipe.split("train").labels, recipe.info)
    found = {}
    for name in _SEEN:
        split = recipe.split(name)
        answers = outputs(model, split.images, normalise)
        found[name] = graded(answers, Cached(split.images, split.labels, answers, normalise), counts)
    return found


def _train(model: nn.Module, recipe: Recipe, lesson: Lesson) -> Iterator[Epoch | Alive]:
    """Every epoch ends in a checkpoint, from which an interrupted training goes on to the same weights."""
    spec, normalise = recipe.spec, Normalise(recipe.info, lesson.device)
    split, validation = recipe.split("train"), recipe.split("validation")
    source, supervised = Augmented(split, normalise, spec.search.seed), Supervised(Supervised.Options())
    schedule, epochs = spec.teacher.training, spec.teacher.epochs
    per_epoch = len(split) // min(schedule.batch_size, len(split))
    pupil, checkpoint = Pupil(model), f"teachers/{recipe.teacher_key}/training.safetensors"
    if lesson.artifacts.has(checkpoint):
        pupil.restore(lesson.artifacts.get(checkpoint))
    for epoch in range(pupil.step // per_epoch, epochs):
        stretch = Stretch(epoch * per_epoch, (epoch + 1) * per_epoch, (0, epochs * per_epoch))
        losses = []
        try:
            for step, loss in train(pupil, source, supervised, schedule, stretch):
                losses.append(loss)
                if step % _ALIVE_STEPS == 0:
                    yield Alive()
        except NonFinite as error:
            raise UserError(f"the teacher's training diverged: {error}", pointer="/teacher/training") from None
        lesson.artifacts.put(checkpoint, pupil.checkpoint())
        reached = merit(outputs(model, validation.images, normalise), validation.labels, recipe.info)
        yield Epoch(epoch + 1, epochs, float(np.mean(losses)), reached)


def training_arrays(recipe: Recipe, result: TeacherResult, artifacts: Artifacts) -> Arrays:
    """The arrays of a `Workload`: the views and the validation set, each with the teacher's logits."""
    logits = load_arrays(artifacts.get(_outputs_key(recipe, result)))
    train_set, validation = _viewed(recipe), recipe.split("validation")
    return {
        "train_images": train_set.images,
        "train_labels": train_set.labels,
        "train_logits": logits["train"],
        "validation_images": validation.images,
        "validation_labels": validation.labels,
        "validation_logits": logits["validation"],
    }


def _cache_outputs(lesson: Lesson, recipe: Recipe, result: TeacherResult) -> None:
    key = _outputs_key(recipe, result)
    if lesson.artifacts.has(key):
        return
    if not recipe.spec.teacher.taught or recipe.spec.task == "detection":
        # A place for everyone's logits, of which nobody has any.
        images = {"train": len(_viewed(recipe)), "validation": len(recipe.split("validation"))}
        nothing = {name: np.zeros((count, len(recipe.info.classes)), np.float32) for name, count in images.items()}
        lesson.artifacts.put(key, save_arrays(nothing))
        return
    model = recipe.teacher.build(recipe.info.shape, len(recipe.info.classes))
    load_weights(model, lesson.artifacts.get(result.weights))
    model.to(lesson.device)
    normalise = Normalise(recipe.info, lesson.device)
    arrays: dict[str, NDArray[np.float32]] = {
        "train": outputs(model, _viewed(recipe).images, normalise),
        "validation": outputs(model, recipe.split("validation").images, normalise),
    }
    lesson.artifacts.put(key, save_arrays(arrays))


def _viewed(recipe: Recipe) -> Split:
    search = recipe.spec.search
    return views(recipe.split("train"), recipe.info, search.views, search.seed)


def _outputs_key(recipe: Recipe, result: TeacherResult) -> str:
    decides = [result.weights, recipe.info.key, recipe.spec.search.views, recipe.spec.search.seed]
    digest = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:24]
    return f"teachers/{result.key}/outputs-{digest}.safetensors"
