"""
How long a job will take and what it will cost, from steps of its own training, timed on this machine.

Everything is a span of low, expected and high: fast, middling and slow steps of those timed, with the fewest, usual and
most steps that the job may need. Starting workers, solving the plan and the export are not in it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from search.batches import Cached, Normalise, unlabelled
from search.boxes import BOX, KIND, OBJECT, VISIBLE
from search.course import Material, Surveyed
from search.plugins import DatasetInfo, Distiller, Labels, SplitName
from search.quality import EVALUATION_BATCH, outputs
from search.rungs import Rungs
from search.space import Site
from search.spec import JobSpec, Schedule
from search.training import Pupil, Stretch, train

_STEPS = 25
"""Steps that are trained; the first one, which warms up, is not counted unless it takes all the time there is."""
_STEP_MACS = 10**9
"""Multiply-accumulates of one image times images that a timed step shall have, where two images have fewer."""
_SECONDS = 0.8
"""After so long no further step is begun."""
_IMAGES = 16
"""Images a timed step has at most."""
_VIEWS = 2


@dataclass(frozen=True, slots=True)
class Span:
    """What something will be at least, probably and at most."""

    low: float
    expected: float
    high: float

    def __add__(self, other: Span) -> Span:
        return Span(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def __mul__(self, other: Span) -> Span:
        return Span(self.low * other.low, self.expected * other.expected, self.high * other.high)

    def times(self, factor: float) -> Span:
        return Span(self.low * factor, self.expected * factor, self.high * factor)


NOTHING = Span(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds an image takes: to learn from in a step of training, and to look at in evaluation."""

    learn: Span
    look: Span


@dataclass(frozen=True, slots=True)
class Phase:
    """`seconds` on the clock; `trial_seconds` summed over the trials that go on side by side."""

    name: str
    seconds: Span
    trial_seconds: Span


def pace(
    model: nn.Module,
    macs: int,
    info: DatasetInfo,
    distiller: Distiller,
    schedule: Schedule,
    *,
    threads: int,
    device: str,
    found: Surveyed | None = None,
) -> Pace:
    """
    Trains `model`, which is changed, for some steps on noise, and times it. Few `macs` make for many images a step.

    Raises:
        TrialError: it cannot be trained.
    """
    size = max(2, min(_IMAGES, schedule.batch_size, _STEP_MACS // max(macs, 1)))
    rng = np.random.default_rng(0)
    # Two views, for distillers that compare them.
    images = rng.integers(0, 256, (_VIEWS * size, *info.shape), dtype=np.uint8)
    labels = np.concatenate([_labels(rng, size, info)] * _VIEWS)
    logits = np.zeros((len(labels), len(info.classes)), dtype=np.float32)
    source = Cached(images, labels, logits, Normalise(info, device))
    # So early in its warm-up that the weights hardly move: noise teaches nothing.
    early = schedule.model_copy(update={"batch_size": size, "warmup": 0.5})
    learned, looked = [], []
    # All stages within these few steps, so that each counts as much as it will.
    material = None if found is None else Material.of(found, source, _VIEWS, _STEPS, device)
    stretch = Stretch(0, _STEPS, (0, 10**9))
    with _threads(threads):
        began = last = time.perf_counter()
        for step, _ in train(Pupil(model.to(device)), source, distiller, early, stretch, material):
            now = time.perf_counter()
            late = now - began > _SECONDS
            if step > 1 or late:
                learned.append((now - last) / size)
            if late:
                break
            last = now
        for _ in range(2):
            began = time.perf_counter()
            outputs(model, images[:size], source.normalise)
            looked.append((time.perf_counter() - began) / size)
    return Pace(_span(learned), _span(looked))


def _labels(rng: np.random.Generator, count: int, info: DatasetInfo) -> Labels:
    """Of noise: some class, of detection at some place."""
    if info.task != "detection":
        return rng.integers(0, len(info.classes), count)
    labels = unlabelled(count, info)
    corner = rng.uniform(0, info.size / 2, (count, 2))
    labels[:, 0, BOX] = np.hstack([corner, corner + info.size / 4])
    labels[:, 0, KIND], labels[:, 0, VISIBLE] = OBJECT, 1
    return labels


def middle(paces: Sequence[Pace]) -> Pace:
    """Of several networks: between the fastest and the slowest, on average expected."""

    def both(spans: Sequence[Span]) -> Span:
        expected = sum(span.expected for span in spans) / len(spans)
        return Span(min(span.low for span in spans), expected, max(span.high for span in spans))

    return Pace(both([pace.learn for pace in paces]), both([pace.look for pace in paces]))


def _span(seconds: Sequence[float]) -> Span:
    """The fastest, the median, and the mean of the slower half: one hiccup is not how a whole job goes."""
    ordered = sorted(seconds)
    return Span(ordered[0], float(np.median(ordered)), float(np.mean(ordered[len(ordered) // 2 :])))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """As many as a trial gets, or as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(count, os.cpu_count() or 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def promoted(rungs: Rungs, trials: int, levels: int = 1) -> list[Span]:
    """
    How many trials reach each rung: the same share of every level's trials, rounded, one of each level at least. Low is
    when all belong to one level, high when each level has as many as another.
    """
    each = [trials // levels + (level < trials % levels) for level in range(levels)]
    together, apart = rungs.counts(trials), np.sum([rungs.counts(count) for count in each], axis=0).tolist()
    return [
        Span(float(low), float(high + low) / 2, float(high))
        for low, high in ((min(pair), max(pair)) for pair in zip(together, apart, strict=True))
    ]


def phases(
    spec: JobSpec,
    rungs: Rungs,
    sizes: Mapping[SplitName, int],
    levels: int,
    teacher: Pace,
    student: Pace,
    finalist: Pace,
    *,
    survey_seconds: float,
    lots: Sequence[Site] = (),
    learns: bool = False,
) -> list[Phase]:
    """
    The phases that take time, in order. `student` is how a typical one learns and looks, `finalist` the same when it is
    distilled as finalists are; `lots` has the site of every choice that the library measures, and `learns` says whether
    widths are learned. What earlier jobs have left, of which nothing is known here, shortens them.
    """
    resources = spec.resources
    slots = resources.concurrent_trials
    views = spec.search.views * sizes["train"]
    looked_at = teacher.look.times(views + 2 * sizes["validation"] + sizes["test"]) if spec.teacher.taught else NOTHING
    taught = NOTHING
    if spec.teacher.weights is None:
        batch = min(spec.teacher.training.batch_size, sizes["train"])
        taught = teacher.learn.times(spec.teacher.epochs * (sizes["train"] // batch) * batch)
    alone = taught + looked_at
    # The teacher has all processors to itself: between no gain from them and the whole gain.
    together = Span(alone.low / slots, alone.expected / math.sqrt(slots), alone.high)

    searched, scored = (
        NOTHING,
        student.look.times(sizes["validation"] + spec.search.calibration_batches * EVALUATION_BATCH),
    )
    reached, trials = 0, NOTHING
    for step, trials in zip(rungs.steps, promoted(rungs, spec.search.trials, levels), strict=True):
        searched += trials * (student.learn.times((step - reached) * spec.search.training.batch_size) + scored)
        reached = step
    again = student.learn.times(reached * spec.search.training.batch_size) + scored.times(len(rungs.steps))
    repeats = Span(*(min(spec.search.repeats, count) for count in (trials.low, trials.expected, trials.high)))
    trained = finalist.learn.times(spec.finalists.steps * spec.finalists.training.batch_size) + scored
    count = spec.finalists.count
    wanted = Span(count, count * levels, count * levels)
    if spec.budget.accuracy is not None:  # levels are halved until the cheapest is found
        wanted = Span(count, count * math.ceil(math.log2(levels + 1)), count * levels)
    if spec.budget.front is not None:  # the front of all levels together
        wanted = Span(1, count, count)
    finals = trained * wanted
    return [
        Phase("teacher", together, alone),
        Phase("survey", Span(survey_seconds, survey_seconds, survey_seconds), NOTHING),
        *_preparing(spec, sizes, teacher, student, lots, learns=learns),
        Phase(
            "search",
            searched.times(1 / min(slots, spec.search.trials)) + _side_by_side(again, repeats, slots),
            searched + again * repeats,
        ),
        Phase("finalists", _side_by_side(trained, wanted, slots), finals),
    ]


def _preparing(
    spec: JobSpec,
    sizes: Mapping[SplitName, int],
    teacher: Pace,
    student: Pace,
    lots: Sequence[Site],
    *,
    learns: bool,
) -> Iterator[Phase]:
    """
    Library, elastic student and learned widths. Which choices lie within one block is found out by the library; here
    those of kernels, operators and widths within a removable block are taken to, and all blocks to be as large as
    another.
    """
    slots = spec.resources.concurrent_trials
    if lots:
        settings, blocks = spec.search.library, max(1, len({site.block for site in lots}))
        within = teacher.learn.times(settings.steps * settings.batch_size / blocks)
        whole = teacher.learn.times(settings.coupled_steps * settings.batch_size / 4)
        looked = teacher.look.times(EVALUATION_BATCH + min(settings.images, sizes["validation"]))
        learned = NOTHING
        for site in lots:
            inner = site.kind in ("kernel", "operator") or site.within is not None
            expected = within.expected if inner else whole.expected
            learned += Span(min(within.low, whole.low), expected, max(within.high, whole.high)) + looked
        yield Phase("library", learned.times(1 / min(slots, len(lots))), learned)
    if spec.search.weights == "elastic":
        elastic = spec.search.elastic
        # Candidates of all sizes, up to the loosest budget.
        each = Span(student.learn.low, student.learn.expected, max(student.learn.high, teacher.learn.expected))
        walked = each.times(elastic.steps * elastic.training.batch_size)
        yield Phase("elastic", walked.times(1 / (1 if spec.search.deterministic else slots)), walked)
    if learns:
        structure = spec.search.structure
        # The teacher at first, a student within the budget at last.
        ends = (student.learn.low, student.learn.expected, teacher.learn.expected, teacher.learn.high)
        each = Span(min(ends), (student.learn.expected + teacher.learn.expected) / 2, max(ends))
        walked = each.times(structure.steps * structure.training.batch_size)
        yield Phase("structure", walked, walked)


def _side_by_side(each: Span, count: Span, slots: int) -> Span:
    """On the clock, with so many at a time."""
    return each * Span(*(math.ceil(number / slots) for number in (count.low, count.expected, count.high)))


def compute_hours(spec: JobSpec, found: Sequence[Phase]) -> tuple[str, Span]:
    """What is paid for: GPU-hours of a job that uses GPUs, else CPU-hours."""
    resources = spec.resources
    unit, share = (
        ("gpu-hours", resources.gpus_per_trial) if resources.gpus_per_trial else ("cpu-hours", resources.cpus_per_trial)
    )
    total = NOTHING
    for phase in found:
        total += phase.trial_seconds.times(share / 3600)
    return unit, total
