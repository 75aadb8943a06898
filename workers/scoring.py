"""The worker's side of a trial: from an assignment to a score."""

from __future__ import annotations

import logging
from collections.abc import Generator
from dataclasses import asdict, replace

import numpy as np

from search.batches import Cached, Normalise, placed
from search.catalog import Catalog
from search.errors import TrialError
from search.evaluate import Evaluator, Reading, Scored
from search.recipe import survey_for
from search.spec import Schedule, read_spec
from search.teachers.weights import load_weights
from search.training import Stretch
from workers.assignment import Assignment, Done, Failed, Outcome, Progress
from workers.scores import keep
from workers.workload import Arrays, Workload

logger = logging.getLogger("stillhouse.scoring")


class Scorer:
    """Builds and surveys the teacher once, then carries out any number of assignments."""

    def __init__(self, workload: Workload, *, device: str = "cpu") -> None:
        self._spec = read_spec(workload.spec)
        self._artifacts = workload.artifacts
        # Not `prepare`: a worker has no use for the dataset's and the strategy's libraries, which take seconds to load.
        catalog, info = Catalog(), workload.info
        teacher = catalog.make("teachers", self._spec.teacher).build(info.shape, len(info.classes))
        load_weights(teacher, workload.artifacts.get(workload.teacher))
        normalise = Normalise(info, device)
        found = survey_for(info, teacher, self._spec.space)
        self._evaluator = Evaluator(
            found,
            found,
            catalog.make("distillers", self._spec.distill),
            placed(_cached(workload.arrays, "train", normalise, self._spec.search.seed)),
            _cached(workload.arrays, "validation", normalise, self._spec.search.seed),
            self._spec.search.calibration_batches,
        )

    def perform(self, assignment: Assignment) -> Generator[Progress | Outcome, None, None]:
        """
        Yields `Progress` now and then, then one outcome. Never raises for a candidate's own fault.

        Checkpoint and score are kept before `Done` is said.
        """
        checkpoint = self._artifacts.get(assignment.read) if assignment.read else None
        stretch = Stretch(assignment.start, assignment.stop, assignment.cosine)
        try:
            for word in self._seeded(assignment.seed).score(
                assignment.choices, self._schedule(assignment), stretch, checkpoint, fresh=assignment.fresh
            ):
                if isinstance(word, Reading):
                    yield Progress(step=word.step, loss=word.loss)
                else:
                    done = _done(word)
                    keep(self._artifacts, assignment.write, word.checkpoint, done)
                    yield done
        except TrialError as error:
            yield Failed(code=error.code, message=error.message)
        except Exception as error:
            logger.exception("trial %s failed in a way nobody foresaw", assignment.trial)
            yield Failed(code="INTERNAL", message=f"{type(error).__name__}: {error}")

    def _seeded(self, seed: int) -> Evaluator:
        """With the training batches in the order of another seed."""
        usual = self._evaluator
        return usual if seed == usual.train.seed else replace(usual, train=replace(usual.train, seed=seed))

    def _schedule(self, assignment: Assignment) -> Schedule:
        part = self._spec.search if assignment.schedule == "search" else self._spec.finalists
        return part.training


def _done(scored: Scored) -> Done:
    return Done(step=scored.step, seconds=scored.seconds, **asdict(scored.quality))


def _cached(arrays: Arrays, split: str, normalise: Normalise, seed: int) -> Cached:
    images, labels, logits = (np.asarray(arrays[f"{split}_{part}"]) for part in ("images", "labels", "logits"))
    return Cached(images, labels, logits, normalise, seed)
