"""
What every method is given and hands over, and the final distillation that its student gets.

The final is the same for all: pure KL at T = 4 on the teacher's kept outputs, SGD with Nesterov momentum .9, learning
rate .05 on a cosine with 5 % warm-up, weight decay 5e-4 on matrices, batches of 64, gradients clipped at 5; then the
test set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from benchmarks.teachers import Bench
from search.budget import Budget
from search.costs.measure import count
from search.distillers.hinton import Hinton
from search.plugins import Distiller
from search.quality import EVALUATION_BATCH, Quality, quality
from search.spec import Schedule
from search.training import Pupil, Stretch, recalibrate, train

STEPS = 500
SCHEDULE = Schedule()
"""The defaults of a job are those above."""


@dataclass
class Compute:
    """
    What a method has used: images that whole networks were trained on, and seconds of CPU time; `prepared` of these
    went into what serves every budget of a teacher.
    """

    samples: int = 0
    seconds: float = 0.0
    prepared: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        began = time.process_time()
        try:
            yield
        finally:
            self.seconds += time.process_time() - began


@dataclass(frozen=True, slots=True)
class Options:
    samples: int = 51_200
    """Images a search may train on: 800 steps of a batch."""
    rungs: tuple[int, int] = (40, 120)
    """Training lengths of a random candidate; a third goes on to the second, as in a job."""
    trial_steps: int = 40
    """Training length of a trial of plain Ray Tune, which has one length for all."""
    penalty: float = 1.0
    """What a trial of plain Ray Tune loses for each time its limit that it is above it; accuracy is 0..1."""


@dataclass(frozen=True)
class Found:
    """What came out: a student within the budget, or None and why in `note`."""

    student: nn.Module | None
    note: str = ""


Method = Callable[[Bench, Budget, int, Compute, Options], Found]
"""From a teacher, a budget and a seed to a student; fills in what it has used for that."""


@dataclass(frozen=True)
class Final:
    """`quality` is on the test set: accuracy, and KL(teacher || student) at T = 1."""

    quality: Quality
    cost: dict[str, int]
    compute: Compute


TEACH = Hinton(Hinton.Options())


def distil(
    model: nn.Module,
    bench: Bench,
    seed: int,
    stop: int,
    compute: Compute,
    *,
    start: int = 0,
    teach: Distiller = TEACH,
) -> None:
    """Trains in place from one step to another on a cosine of its own. `seed` orders the images."""
    with compute.timed():
        source, stretch = replace(bench.train, seed=seed), Stretch(start, stop, (start, stop))
        for _ in train(Pupil(model, start), source, teach, SCHEDULE, stretch):
            compute.samples += SCHEDULE.batch_size


def looked_at(model: nn.Module, bench: Bench, compute: Compute) -> Quality:
    """On validation, with batch-norm statistics computed anew, as a job scores a trial."""
    with compute.timed():
        recalibrate(model, bench.train, batches=bench.spec.search.calibration_batches, batch_size=EVALUATION_BATCH)
        return quality(model, bench.validation)


def final(model: nn.Module, bench: Bench, seed: int, steps: int = STEPS) -> Final:
    """Trains `model` in place, which keeps the batch-norm statistics of that training, and looks at the test set."""
    compute = Compute()
    distil(model, bench, seed, steps, compute)
    return Final(quality(model, bench.test), count(model, bench.example), compute)
