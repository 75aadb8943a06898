"""
What a step of distillation costs with the teacher's outputs cached, against plain cross-entropy, and against the naive
way: a fresh augmentation and a forward pass of the teacher in every step.

    python -m benchmarks.step

Students of three sizes of two teachers, batch 64, one thread. The three ways take turns, step by step, in one process;
time is the processor's, so that others on the machine count for little.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from search.batches import Augmented, Batch, Cached, Normalise, Source
from search.budget import Budget
from search.catalog import Catalog
from search.distillers.hinton import Hinton
from search.distillers.supervised import Supervised
from search.files import Files
from search.plugins import Dataset, Distiller
from search.projection import Projector
from search.quality import outputs
from search.recipe import survey_for
from search.spec import Pick, Schedule, SpaceSpec
from search.training import Pupil, Stretch, train

TEACHERS, SHARES = ("small_resnet", "small_mobilenet"), (0.1, 0.2, 0.5)
WARM_UP, ROUNDS, STEPS = 3, 6, 6
"""A round is so many steps of each way; a ratio is taken within a round."""


@dataclass(frozen=True)
class Naive:
    """Nothing cached."""

    augmented: Augmented
    teacher: nn.Module

    def batch(self, step: int, size: int) -> Batch:
        batch = self.augmented.batch(step, size)
        with torch.inference_mode():
            logits = self.teacher(batch.images)
        return Batch(batch.images, batch.labels, logits.clone())


def steps(student: nn.Module, source: Source, distiller: Distiller) -> Iterator[float]:
    """Trains a copy of `student` without end and yields the processor's milliseconds of every step."""
    course = train(Pupil(deepcopy(student)), source, distiller, Schedule(), Stretch(0, 10**6, (0, 10**6)))
    while True:
        began = time.process_time()
        next(course)
        yield 1000 * (time.process_time() - began)


def rounds(ways: Mapping[str, Iterator[float]]) -> dict[str, list[float]]:
    """By way: the median step of every round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(WARM_UP):
        for way in ways.values():
            next(way)
    for _ in range(ROUNDS):
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(STEPS):
            for name, way in ways.items():
                taken[name].append(next(way))
        for name, times in taken.items():
            found[name].append(statistics.median(times))
    return found


def ratio(times: list[float], plain: list[float]) -> str:
    """The median of the rounds' ratios and their range without the highest and the lowest."""
    ratios = sorted(one / other for one, other in zip(times, plain, strict=True))
    return f"{statistics.median(ratios):.2f} ({ratios[1]:.2f}-{ratios[-2]:.2f})"


def students(name: str, dataset: Dataset) -> Iterator[tuple[float, nn.Module, nn.Module]]:
    """A teacher, untrained, and its widest students of each share of its macs: `(share, student, teacher)`."""
    info = dataset.info()
    teacher = Catalog().make("teachers", Pick(name=name)).build(info.shape, len(info.classes)).eval()
    found = survey_for(info, teacher, SpaceSpec(divisor=2))
    for share in SHARES:
        budget = Budget({"macs": int(share * found.cost["macs"])})
        yield share, found.graft(Projector(found, budget).project(found.space.full())), teacher


def compare(name: str, dataset: Dataset) -> None:
    normalise, split = Normalise(dataset.info()), dataset.split("train")
    plain, soft = Supervised(Supervised.Options()), Hinton(Hinton.Options())
    for share, student, teacher in students(name, dataset):
        cached = Cached(split.images, split.labels, outputs(teacher, split.images, normalise), normalise)
        times = rounds(
            {
                "plain": steps(student, cached, plain),
                "cached": steps(student, cached, soft),
                "naive": steps(student, Naive(Augmented(split, normalise), teacher), soft),
            }
        )
        print(
            f"| {name} | {share:.0%} | {statistics.median(times['plain']):.1f} "
            f"| {ratio(times['cached'], times['plain'])} | {ratio(times['naive'], times['plain'])} |",
            flush=True,
        )


@contextmanager
def images() -> Iterator[Dataset]:
    """A thousand to train on; which ones they are does not matter for time."""
    with tempfile.TemporaryDirectory() as cache:
        pick = Pick(name="cluttered_digits", options={"train": 1000, "validation": 10, "test": 10})
        yield Catalog().make("datasets", pick, files=Files(cache=Path(cache)))


def main() -> None:
    torch.set_num_threads(1)
    print("| teacher | macs | cross-entropy, ms a step | outputs cached | naive |\n|---|---:|---:|---:|---:|")
    with images() as dataset:
        for name in TEACHERS:
            compare(name, dataset)


if __name__ == "__main__":
    main()
