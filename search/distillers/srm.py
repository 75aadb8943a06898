from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field, model_validator
from torch import Tensor, nn

from search.batches import Batch
from search.course import Course, Material, Stage
from search.distillers.features import alike
from search.distillers.hinton import Hinton
from search.taps import forward


class Srm(Hinton):
    """
    Sparse representation matching (Tran, Gabbouj, Iosifidis: arXiv 2103.17012), in three stages.

    `dictionary`: of every tapped layer of the teacher, atoms are learned of which few describe the features of a
    pixel. `matching`: the student learns to tell which, for every pixel and on average for every image. `distil`:
    softened outputs and labels, as usual. All of it as in the authors' code [C], but for what is named here.

    Not repeated of that code: another layer in the second stage than in the first, a teacher in training mode, and a
    best model chosen at some steps only. Ours [I]: a student begins with weights cut from the teacher and not at
    random, the learning rate of every stage falls as the schedule says, by a cosine unless told else, the last stage
    is trained as everything here is and not by Adam, and where a student shrinks its images first, the teacher's maps
    are averaged down to the size of its own.
    """

    class Options(Hinton.Options):
        alpha: float = Field(0.75, ge=0, le=1)
        """Share of the softened part in the last stage; the paper tried .25, .5 and .75 on CIFAR, .3 on ImageNet."""
        layers: tuple[str, ...] = Field((), max_length=64)
        """Modules whose outputs are matched; without any, the last block at each size."""
        mu: float = Field(2.0, gt=0, le=64)
        """Atoms of a dictionary for every channel of the teacher's."""
        sparsity: float = Field(0.02, gt=0, le=1)
        """The paper's lambda: share of the atoms that describe a pixel."""
        learning_rate: float = Field(1e-3, gt=0, le=1)
        """Of Adam, in the first two stages."""
        dictionary: float = Field(0.2, gt=0, lt=1)
        """Share of the steps that learn dictionaries; of the 460 epochs of the paper's CIFAR recipe 100."""
        matching: float = Field(0.3, gt=0, lt=1)
        """Share of the steps that match; 160 there. The rest distils."""
        targets: Literal["both", "image", "pixel"] = "both"
        """What is matched; the paper compares all three."""
        pixel_logits: Literal["sigmoid", "raw"] = "sigmoid"
        """
        What the cross-entropy of pixels is fed with. Published are the scores after their sigmoid, so that this loss
        never falls below log(1 + (atoms - 1) / e).
        """

        @model_validator(mode="after")
        def _something_is_left(self) -> Srm.Options:
            if self.dictionary + self.matching >= 1:
                raise ValueError("`dictionary` and `matching` must leave some of the steps for the last stage")
            return self

    options: Options

    def course(self, student: nn.Module, material: Material) -> Course:
        """Raises `UserError` when there is no such layer."""
        return _Course(student, material, self)

    def matching(self, theirs: Atoms, mine: Atoms, answer: Tensor, target: Tensor, count: int) -> Tensor:
        """
        Of one layer, in the second stage: `answer` `[n, channels, height, width]` of the student, `target` of the
        teacher, `count` atoms a pixel. Binary cross-entropy of the image's means, cross-entropy of the pixels.
        """
        answer, target = alike(answer, target)
        with torch.no_grad():
            code = sparse(theirs(target).sigmoid(), count)
        raw = mine(answer)
        scores = raw.sigmoid()
        losses = []
        if self.options.targets != "pixel":
            losses.append(F.binary_cross_entropy(scores.mean(dim=(2, 3)), code.mean(dim=(2, 3))))
        if self.options.targets != "image":
            pixels = scores if self.options.pixel_logits == "sigmoid" else raw
            losses.append(F.cross_entropy(pixels, code.argmax(dim=1)))
        return _sum(losses)


class Atoms(nn.Module):
    """
    How much of each of `count` atoms there is at every pixel: `sigmoid(<features, atom> + bias)`.

    Features `[n, channels, height, width]` to scores `[n, count, height, width]`. The kernel of all layers, both of
    the teacher's and of the student's.
    """

    def __init__(self, channels: int, count: int) -> None:
        super().__init__()
        bound = math.sqrt(6 / count)  # the authors' initialiser takes the number of atoms for the fan-in
        self.atoms = nn.Parameter(torch.empty(channels, count).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(1).uniform_(-1, 1))

    def forward(self, features: Tensor) -> Tensor:
        """Before the sigmoid."""
        scores: Tensor = torch.einsum("nchw,cm->nmhw", features, self.atoms) + self.bias
        return scores

    def rebuilt(self, code: Tensor) -> Tensor:
        """Features from a code."""
        features: Tensor = torch.einsum("nmhw,cm->nchw", code, self.atoms)
        return features


def kept(sparsity: float, mu: float, channels: int) -> int:
    """How many atoms describe a pixel: `max(1, int(lambda * mu * D))`."""
    return max(1, int(sparsity * mu * channels))


def sparse(scores: Tensor, count: int) -> Tensor:
    """The `count` largest of the scores of every pixel, zero for the others; where some are equal, more may stay."""
    least = scores.topk(count, dim=1).values[:, -1:]
    return scores * (scores >= least)


class _Course(Course):
    def __init__(self, student: nn.Module, material: Material, distiller: Srm) -> None:
        super().__init__(student)
        options = distiller.options
        self._distiller = distiller
        rest = 1 - options.dictionary - options.matching
        self.stages = (
            Stage("dictionary", options.dictionary, options.learning_rate),
            Stage("matching", options.matching, options.learning_rate),
            Stage("distil", rest),
        )
        self._student, self._teacher, taps = material.watched(student, options.layers)
        widths = [features.shape[1] for features in self._student.dry(material.first()).features]
        self._kept = [kept(options.sparsity, options.mu, tap.shape[0]) for tap in taps]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(material.seed)
            counts = [max(1, int(options.mu * tap.shape[0])) for tap in taps]
            self._theirs = [Atoms(tap.shape[0], count) for tap, count in zip(taps, counts, strict=True)]
            self._mine = [Atoms(width, count) for width, count in zip(widths, counts, strict=True)]
        self.extras["teacher"], self.extras["student"] = nn.ModuleList(self._theirs), nn.ModuleList(self._mine)

    def trained(self, stage: Stage) -> Iterator[tuple[str, nn.Parameter]]:
        if stage.name == "dictionary":
            yield from self._of("teacher")
            return
        yield from self.student.named_parameters()
        if stage.name == "matching":
            yield from self._of("student")

    def _of(self, whose: str) -> Iterator[tuple[str, nn.Parameter]]:
        for path, parameter in self.extras[whose].named_parameters():
            yield f"extras/{whose}.{path}", parameter

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        if stage.name == "distil":
            logits = forward(self.student, batch.images)
            return self._distiller.loss(logits, batch.labels, batch.teacher_logits)
        with torch.no_grad():
            target = self._teacher(batch.images).features
        if stage.name == "dictionary":
            rows = zip(self._theirs, target, self._kept, strict=True)
            return _sum([rebuilding(atoms, features, count) for atoms, features, count in rows])
        answer = self._student(batch.images).features
        layers = zip(self._theirs, self._mine, answer, target, self._kept, strict=True)
        return _sum([self._distiller.matching(*layer) for layer in layers])


def rebuilding(atoms: Atoms, features: Tensor, count: int) -> Tensor:
    """Of one layer, in the first stage: how far the features are from what their code rebuilds."""
    return F.mse_loss(atoms.rebuilt(sparse(atoms(features).sigmoid(), count)), features)


def _sum(losses: list[Tensor]) -> Tensor:
    return torch.stack(losses).sum()
