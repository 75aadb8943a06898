"""
What a distiller makes of one student: all that is trained, in which stages, and by which loss.

A distiller that is nothing but a loss on logits needs none of this. The others open a `Course`, which may tap features,
train modules of its own beside the student, choose the images of a step, and change how training is done from stage to
stage. What a course trains beside the student goes into its checkpoints and never into the student.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from search.batches import Batch, Cached, Normalise, Source, unlabelled
from search.detector import Detector
from search.errors import UserError
from search.plugins import DatasetInfo, Distiller
from search.spec import JobSpec, Trained
from search.taps import Sights, Tap, Watched, forward, precision, sights


@dataclass(frozen=True, slots=True)
class Stage:
    """
    A part of a training. `share` of its steps; `adam` is the learning rate of Adam, None: SGD as the schedule has it.
    Every stage of several walks the whole schedule by itself, and forgets the momentum of the one before.
    """

    name: str
    share: float = 1.0
    adam: float | None = None


@dataclass(frozen=True)
class Material:
    """
    What a course may use beside its student. `source` is the training set, `views` versions of every image one after
    the other; `teacher` is in evaluation mode and never trained; `blocks` are the names of its blocks; `steps` is the
    length of the whole training, of which a checkpoint may have walked a part.
    """

    source: Pool
    views: int
    teacher: nn.Module
    blocks: tuple[str, ...]
    steps: int
    seed: int = 0

    @classmethod
    def of(cls, found: Surveyed, source: Pool, views: int, steps: int, device: str = "cpu", seed: int = 0) -> Material:
        """With a copy of the surveyed teacher, on `device`."""
        teacher = copy.deepcopy(found.teacher).to(device).eval().requires_grad_(False)
        return cls(source, views, teacher, tuple(filter(None, found.block_costs)), steps, seed)

    @cached_property
    def sights(self) -> Sights:
        """What can be tapped, of the teacher and of every student grafted from it."""
        return sights(self.teacher, self.first()[0], self.blocks)

    def first(self) -> Tensor:
        """One image, `[1, channels, size, size]`."""
        return self.source.pick(np.zeros(1, dtype=np.int64)).images

    def watched(self, student: nn.Module, layers: Sequence[str] = ()) -> tuple[Watched, Watched, tuple[Tap, ...]]:
        """
        The student and the teacher, both watched at `layers` (`Sights.chosen`) and at the input of the last linear
        layer, and the teacher's taps there. A student that was not cut from the teacher, and so has no modules of
        these names, is watched at its last map of the same size as each.

        Raises:
            UserError: there is no such layer, or such a student has no map of that size.
        """
        taps = self.sights.chosen(layers)
        names = [tap.name for tap in taps]
        teacher = Watched(self.teacher, names, self.sights.head)
        try:
            return Watched(student, names, self.sights.head), teacher, taps
        except LookupError:
            own = sights(student, self.first()[0], ())
        last = {tap.shape[1:]: tap.name for tap in own.maps}
        for at, tap in enumerate(taps):
            if tap.shape[1:] not in last:
                raise UserError(f"the student has no map of the size of `{tap.name}`", pointer=f"/layers/{at}")
        return Watched(student, [last[tap.shape[1:]] for tap in taps], own.head), teacher, taps

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """How many training images each class has, `[classes]`."""
        labels = self.source.targets()
        classes = self.source.pick(np.zeros(1, dtype=np.int64)).teacher_logits
        assert classes is not None  # noqa: S101 - a pool is cached with them
        return np.bincount(labels, minlength=classes.shape[1]) // self.views


def blank(spec: JobSpec, part: Trained, info: DatasetInfo, found: Surveyed) -> Material:
    """Of a job of which nothing has been trained yet: the untrained teacher, and one grey image."""
    images = np.full((spec.search.views, *info.shape), 128, dtype=np.uint8)
    labels = unlabelled(len(images), info)
    logits = np.zeros((len(images), len(info.classes)), dtype=np.float32)
    return material(spec, part, found, Cached(images, labels, logits, Normalise(info)))


def material(spec: JobSpec, part: Trained, found: Surveyed, source: Pool, device: str = "cpu") -> Material:
    """What the distiller of trials or of finalists may use."""
    steps = spec.search.rungs[-1] if part == "search" else spec.finalists.steps
    return Material.of(found, source, spec.search.views, steps, device, spec.search.seed)


class Surveyed(Protocol):
    """What of a survey a course has to do with."""

    @property
    def teacher(self) -> nn.Module: ...

    @property
    def block_costs(self) -> Mapping[str, object]:
        """By the names of the blocks."""
        ...


class Pool(Source, Protocol):
    """A training set of which any image may be asked for."""

    def __len__(self) -> int: ...

    def pick(self, at: NDArray[np.int64]) -> Batch:
        """The images at `at` `[n]`, in that order."""
        ...

    def drawn(self, step: int, size: int) -> NDArray[np.int64]:
        """Which images the batch of a step holds, `[size]`."""
        ...

    def targets(self) -> NDArray[np.int64]:
        """The labels of all images, in the order stored."""
        ...


class Course(ABC):
    """
    The training of one student. `extras` are modules trained beside it, or carried with it.

    Subclasses give the loss, and whatever else they do differently. State that must outlive an interruption is a
    parameter or a buffer of `extras`.
    """

    stages: tuple[Stage, ...] = (Stage("distil"),)

    def __init__(self, student: nn.Module) -> None:
        self.student = student
        self.extras = nn.ModuleDict()

    def trained(self, stage: Stage) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that a stage trains, by name: all of the student's and of the extras', unless told else."""
        yield from self.student.named_parameters()
        for name, parameter in self.extras.named_parameters():
            yield f"extras/{name}", parameter

    def draw(self, source: Source, step: int, size: int) -> Batch:
        """The images of a step."""
        return source.batch(step, size)

    def before(self, step: int) -> None:  # noqa: B027 - most have nothing to do there
        """Called before every step."""

    @abstractmethod
    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        """A scalar, from which gradients flow to what is trained."""

    def after(self, step: int) -> None:  # noqa: B027 - as above
        """Called after every step, with the parameters moved."""

    def train(self) -> None:
        """Puts everything that is trained into training mode."""
        self.student.train()
        self.extras.train()


class Plain(Course):
    """A loss on logits and nothing else."""

    def __init__(self, student: nn.Module, distiller: Distiller) -> None:
        super().__init__(student)
        self._distiller = distiller

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        return self._distiller.loss(forward(self.student, batch.images), batch.labels, batch.teacher_logits)


class Alone(Course):
    """A detector's own losses and nothing else."""

    student: Detector

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        with precision(batch.images.device):
            losses = self.student.losses(batch.images, batch.labels, step)
        return torch.stack([*losses.values()]).sum()


@runtime_checkable
class Coursed(Distiller, Protocol):
    """A distiller that does more than look at logits."""

    def course(self, student: nn.Module, material: Material) -> Course:
        """
        Raises:
            UserError: its options do not suit this network or this data; the pointer starts at the options.
        """
        ...


def course_of(distiller: Distiller, student: nn.Module, material: Material | None) -> Course:
    """
    Raises:
        UserError: the distiller needs more than logits, and there is no `material`; or its options do not suit it.
    """
    if not isinstance(distiller, Coursed):
        return Alone(student) if isinstance(student, Detector) else Plain(student, distiller)
    if material is None:
        raise UserError(f"{type(distiller).__name__} needs more than logits, which is all there is here")
    return distiller.course(student, material)


@dataclass(frozen=True, slots=True)
class Span:
    """Steps `start` to `stop` of a training, which belong to one stage."""

    stage: Stage
    start: int
    stop: int


def spans(stages: Sequence[Stage], steps: int) -> list[Span]:
    """Where each stage of a training of so many steps lies. The last one ends with the training."""
    whole, done, found, start = sum(stage.share for stage in stages), 0.0, list[Span](), 0
    for at, stage in enumerate(stages):
        done += stage.share
        stop = steps if at == len(stages) - 1 else round(steps * done / whole)
        found.append(Span(stage, start, stop))
        start = stop
    return found


def state_of(extras: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, each once, although several modules may share it."""
    return {**dict(extras.named_parameters()), **dict(extras.named_buffers())}


def restore(extras: nn.Module, state: Mapping[str, Tensor]) -> None:
    """The inverse of `state_of`, into modules of the same shapes."""
    for name, tensor in state_of(extras).items():
        tensor.data.copy_(state[name])
