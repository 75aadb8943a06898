"""What a candidate scores after a stretch of distillation."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from search.batches import Cached, Resident
from search.course import Material
from search.plugins import Distiller
from search.quality import EVALUATION_BATCH, Quality, quality
from search.scratch import Grafting
from search.spec import Schedule
from search.surgery import Survey
from search.training import Pupil, Stretch, recalibrate, train


@dataclass(frozen=True, slots=True)
class Reading:
    """Where a stretch of training stands; `loss` is the mean since the last reading."""

    step: int
    loss: float


@dataclass(frozen=True, slots=True)
class Scored:
    """The end of a stretch: what the network does on the validation set, and how to go on from here."""

    step: int
    quality: Quality
    seconds: float
    checkpoint: bytes


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Scores candidates of one teacher: grafts, distils for a stretch, recalibrates, looks at the validation set."""

    survey: Survey
    donor: Grafting
    distiller: Distiller
    train: Cached | Resident
    validation: Cached
    calibration_batches: int
    report_every: int = 20
    material: Material | None = None
    """Needed by a distiller that does more than look at logits."""
    taught: bool = True
    """Whether there is a teacher to be near to."""

    def seeded(self, seed: int) -> Evaluator:
        """With the training batches in the order of another seed."""
        if seed == self.train.seed:
            return self
        train = replace(self.train, seed=seed)
        material = self.material and replace(self.material, source=train, seed=seed)
        return replace(self, train=train, material=material)

    def score(
        self,
        choices: Mapping[str, int],
        schedule: Schedule,
        stretch: Stretch,
        checkpoint: bytes | None,
        *,
        fresh: bool = False,
    ) -> Iterator[Reading | Scored]:
        """
        Trains the candidate over `stretch`, going on from `checkpoint` (None: from the donor's weights). When
        `fresh`, only the weights of the checkpoint are taken: its momentum and step belong to another training.

        Yields a `Reading` now and then and one `Scored` at the end; closing the generator stops the training.

        Raises:
            TrialError: this candidate cannot be trained.
        """
        began = time.monotonic()
        pupil = Pupil(self.graft(choices), step=stretch.start)
        if checkpoint is not None:
            pupil.restore(checkpoint)
        if fresh:
            pupil.begin_again()
        losses = []
        for step, loss in train(pupil, self.train, self.distiller, schedule, stretch, self.material):
            losses.append(loss)
            if step % self.report_every == 0 and step < stretch.stop:
                yield Reading(step, float(np.mean(losses)))
                losses.clear()
        recalibrate(pupil.model, self.train, batches=self.calibration_batches, batch_size=EVALUATION_BATCH)
        found = quality(pupil.model, self.validation, taught=self.taught)
        yield Scored(stretch.stop, found, time.monotonic() - began, pupil.checkpoint())

    def graft(self, choices: Mapping[str, int]) -> nn.Module:
        """The candidate's network with weights from the donor, on the device of the data."""
        student = self.donor.graft(self.survey.space.candidate(choices))
        return student.to(self.train.normalise.device)
