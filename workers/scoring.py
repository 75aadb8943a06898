"""The worker's side of a trial: from an assignment to a score."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator
from dataclasses import asdict

from search.batches import placed
from search.course import Coursed, material
from search.errors import TrialError
from search.evaluate import Evaluator, Reading, Scored
from search.scratch import Grafting, Scratch
from search.spec import Schedule
from search.training import Stretch
from workers.assignment import Assignment, Done, Failed, Outcome, Progress
from workers.desk import Desk
from workers.narrowing import learned_of
from workers.rounds import elastic_of
from workers.scores import keep
from workers.shelves import library_of
from workers.workload import Workload

logger = logging.getLogger("stillhouse.scoring")


class Scorer:
    """Builds and surveys the teacher once, then carries out any number of assignments."""

    def __init__(self, workload: Workload, *, device: str = "cpu") -> None:
        self._artifacts = workload.artifacts
        desk = Desk.of(workload, device)
        self._spec = desk.spec
        donor, source = _donor(desk, workload), placed(desk.train)
        self._evaluators = {
            part: Evaluator(
                desk.survey,
                donor,
                distiller,
                source,
                desk.validation,
                desk.spec.search.calibration_batches,
                material=material(desk.spec, part, desk.survey, source, device)
                if isinstance(distiller, Coursed)
                else None,
                taught=desk.spec.teacher.taught,
            )
            for part, distiller in desk.distillers.items()
        }

    def perform(self, assignment: Assignment) -> Generator[Progress | Outcome, None, None]:
        """
        Yields `Progress` now and then, then one outcome. Never raises for a candidate's own fault.

        Checkpoint and score are kept before `Done` is said.
        """
        checkpoint = self._artifacts.get(assignment.read) if assignment.read else None
        stretch = Stretch(assignment.start, assignment.stop, assignment.cosine)
        try:
            for word in (
                self._evaluators[assignment.schedule]
                .seeded(assignment.seed)
                .score(assignment.choices, self._schedule(assignment), stretch, checkpoint, fresh=assignment.fresh)
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
            logger.exception(
                "trial %s failed in a way nobody foresaw", assignment.trial, extra={"trial_id": assignment.trial}
            )
            yield Failed(code="INTERNAL", message=f"{type(error).__name__}: {error}")

    def _schedule(self, assignment: Assignment) -> Schedule:
        part = self._spec.search if assignment.schedule == "search" else self._spec.finalists
        return part.training


def _done(scored: Scored) -> Done:
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return Done(step=scored.step, seconds=scored.seconds, worker=worker, **asdict(scored.quality))


def _donor(desk: Desk, workload: Workload) -> Grafting:
    """Where the weights of students come from."""
    found = desk.survey
    if workload.library is not None:
        return library_of(found, workload, workload.library)
    if workload.elastic is not None:
        return elastic_of(found, workload, workload.elastic)
    if workload.structure:
        return learned_of(found, workload, workload.structure)
    if desk.spec.search.weights == "scratch":
        return Scratch(found, desk.spec.search.seed)
    return found
