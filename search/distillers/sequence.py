from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from search.batches import Batch, Source
from search.course import Course, Material, Stage
from search.distillers.hinton import Hinton
from search.taps import forward

_BATCH = 256


class Sequence(Hinton):
    """
    Instance-level sequence learning (Zhao et al.: arXiv 2106.10885), a reconstruction.

    Known is [C]: a snapshot of the student at an early epoch makes the curriculum of its next phase. The rest is ours
    [I]: plain distillation in random order for the share `first` of the steps; then `phases` of equal length. Before
    each the student scores every training image, unaugmented, and at every step of a phase the batch is drawn from the
    easiest images, of which there are `easiest` at first and all at the end.
    """

    class Options(Hinton.Options):
        alpha: float = Field(0.9, ge=0, le=1)
        """Share of the softened part; the rest is cross-entropy with the labels."""
        phases: int = Field(3, ge=1, le=100)
        """After the first one, each with a curriculum of its own."""
        first: float = Field(0.15, gt=0, lt=1)
        """Share of the steps before the first snapshot."""
        easiest: float = Field(0.4, gt=0, le=1)
        """Share of the images that a phase begins with."""
        pacing: Literal["linear", "buckets"] = "linear"
        """How the share grows to all within a phase: at every step, or in `buckets` equal jumps."""
        buckets: int = Field(4, ge=2, le=100)
        difficulty: Literal["loss", "confidence", "divergence"] = "loss"
        """Of an image: its cross-entropy, 1 - the probability of its label, or KL(teacher || who scores)."""
        order: Literal["student", "teacher", "reversed", "random"] = "student"
        """Who scores. The others are controls: the teacher, the hardest first, and an order that means nothing."""
        balanced: bool = False
        """Whether the easiest images have as many of every class as all images do."""

    options: Options

    def course(self, student: nn.Module, material: Material) -> Course:
        return _Course(student, material, self)


class _Course(Course):
    def __init__(self, student: nn.Module, material: Material, distiller: Sequence) -> None:
        super().__init__(student)
        self._material, self._distiller = material, distiller
        self._count = len(material.source) // material.views
        options, steps = distiller.options, material.steps
        first = max(1, round(options.first * steps))
        self._starts = [first + (steps - first) * phase // options.phases for phase in range(options.phases)]
        self._stops = [*self._starts[1:], steps]
        # Kept in checkpoints: who goes on within a phase has another student than the one that made the order.
        curriculum = nn.Module()
        curriculum.register_buffer("order", torch.arange(self._count))
        self.extras["curriculum"] = curriculum

    def before(self, step: int) -> None:
        if step in self._starts:
            order = torch.from_numpy(self._ordered(self._starts.index(step)))
            self.extras["curriculum"].get_buffer("order").copy_(order)

    def draw(self, source: Source, step: int, size: int) -> Batch:
        if step < self._starts[0]:
            return source.batch(step, size)
        phase = max(at for at, start in enumerate(self._starts) if start <= step)
        start, stop = self._starts[phase], self._stops[phase]
        share = self._distiller.options.easiest
        share = paced(self._distiller.options, (step - start) / max(1, stop - start - 1), share)
        easy = max(1, min(self._count, round(share * self._count)))
        rng = np.random.default_rng([self._material.seed, 7, step])
        order = self.extras["curriculum"].get_buffer("order")[:easy].cpu().numpy()
        images = rng.choice(order, min(size, easy), replace=False)
        return self._material.source.pick(rng.integers(self._material.views, size=len(images)) * self._count + images)

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        return self._distiller.loss(forward(self.student, batch.images), batch.labels, batch.teacher_logits)

    def _ordered(self, phase: int) -> NDArray[np.int64]:
        """All images, those to come first first."""
        options = self._distiller.options
        if options.order == "random":
            return np.random.default_rng([self._material.seed, 8, phase]).permutation(self._count)
        scores, labels = self._difficulties()
        order = np.argsort(-scores if options.order == "reversed" else scores, kind="stable")
        return stratified(order, labels) if options.balanced else order

    def _difficulties(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Of all images `[n]`, and their labels. The first view is the image as it is."""
        options, scores, labels = self._distiller.options, list[Tensor](), list[Tensor]()
        self.student.eval()
        with torch.no_grad():
            for start in range(0, self._count, _BATCH):
                batch = self._material.source.pick(np.arange(start, min(start + _BATCH, self._count)))
                assert batch.teacher_logits is not None  # noqa: S101 - needs_teacher is True
                by_teacher = options.order == "teacher"
                logits = batch.teacher_logits if by_teacher else forward(self.student, batch.images)
                scores.append(difficulty(logits, batch.labels, batch.teacher_logits, options.difficulty))
                labels.append(batch.labels)
        self.student.train()
        return torch.cat(scores).double().cpu().numpy(), torch.cat(labels).cpu().numpy()


def paced(options: Sequence.Options, done: float, least: float) -> float:
    """The share of the images that may be drawn when the share `done` of a phase is over."""
    if options.pacing == "buckets":
        done = min(int(done * options.buckets), options.buckets - 1) / (options.buckets - 1)
    return least + (1 - least) * done


def difficulty(logits: Tensor, labels: Tensor, teacher_logits: Tensor, kind: str) -> Tensor:
    """Of every image, `[n]`, from `logits` `[n, classes]` of who scores; the harder the larger."""
    if kind == "divergence":
        answer, target = F.log_softmax(logits, dim=1), F.log_softmax(teacher_logits, dim=1)
        return F.kl_div(answer, target, reduction="none", log_target=True).sum(dim=1)
    loss = F.cross_entropy(logits, labels, reduction="none")
    return loss if kind == "loss" else 1 - (-loss).exp()


def stratified(order: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same order within every class, and every beginning of it with as much of each class as the whole has."""
    sorted_labels = labels[order]
    place = np.empty(len(order))
    for label in np.unique(sorted_labels):
        mine = sorted_labels == label
        place[mine] = (np.arange(mine.sum()) + 0.5) / mine.sum()
    return order[np.argsort(place, kind="stable")]
