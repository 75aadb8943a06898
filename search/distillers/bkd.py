from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from search.batches import Batch
from search.course import Course, Material, Stage
from search.distillers.hinton import Hinton
from search.part import Part
from search.taps import forward


class Bkd:
    """
    Balanced distillation for long-tailed data (Zhang, Chen, Hu, Peng: arXiv 2104.10510; Neurocomputing 527, 2023).

    The labels are learned as they come, by plain cross-entropy; the classes are balanced in what the teacher says.
    Of its softened answer `q` `[n, classes]` the column of every class is weighted, and each row made to sum to one
    again: `q' = w q / sum(w q)`, `w_c` as `weights` has it. Then

        L = CE + alpha * T^2 * KL(q' || softmax(student / T)), means over the batch.

    Confirmed by the authors' code [C]: loss, weights, `alpha` 1, `T` 2, `beta` .9999, and that each row is made to sum
    to one; whether the paper's formula does that too is not known [?]. Their student begins at random. Ours [I]: here
    it is cut from the teacher, and a class without an image is weighted as one of one image.

    As `log q'` is `log_softmax(teacher / T + log w)`, to weight the columns is to raise the logits of rare classes. To
    weight a row by its label, as a public re-implementation does, would be undone when the row is made to sum to one.
    """

    class Options(Part):
        temperature: float = Field(2.0, gt=0, le=100)
        alpha: float = Field(1.0, ge=0, le=1000)
        """Of the softened part; the cross-entropy counts once."""
        beta: float = Field(0.9999, ge=0, lt=1)
        """How much further images of a class still count: 0, no image but the first, all weights 1; towards 1, all."""
        deferred: float = Field(0.0, ge=0, le=1)
        """Share of the training in which all weights are still 1; the authors' for CIFAR-10 is .8, for CIFAR-100 0."""

    needs_teacher: ClassVar[bool] = True

    def __init__(self, options: Options) -> None:
        self.options = options
        self._soft = Hinton(Hinton.Options(temperature=options.temperature))

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """`logits`, `teacher_logits` `[n, classes]`, `labels` `[n]` -> scalar, with all weights 1."""
        soft = self._soft.loss(logits, labels, teacher_logits)
        return F.cross_entropy(logits, labels) + self.options.alpha * soft

    def course(self, student: nn.Module, material: Material) -> Course:
        return Balanced(student, self, material)

    def balanced(self, teacher_logits: Tensor, weight: Tensor) -> Tensor:
        """Logits whose softmax at T is `q'`: the teacher's, `[n, classes]`, with `weight` `[classes]`."""
        return teacher_logits + self.options.temperature * weight.log()


class Balanced(Course):
    """The weights are those of the training set, and on from the step at which `deferred` has passed."""

    def __init__(self, student: nn.Module, distiller: Bkd, material: Material) -> None:
        super().__init__(student)
        options = distiller.options
        self._distiller, self._start = distiller, round(options.deferred * material.steps)
        self._weight = weights(material.counts, options.beta).to(next(student.parameters()).device)

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        target = batch.teacher_logits
        assert target is not None  # noqa: S101 - needs_teacher is True
        if step >= self._start:
            target = self._distiller.balanced(target, self._weight)
        return self._distiller.loss(forward(self.student, batch.images), batch.labels, target)


def weights(counts: NDArray[np.int64], beta: float) -> Tensor:
    """
    The inverse of each class's effective number of images, `(1 - beta) / (1 - beta^n_c)`, scaled to a mean of 1
    (Cui et al., CVPR 2019: arXiv 1901.05555). `counts` `[classes]` -> float32 `[classes]`.
    """
    images = torch.from_numpy(counts).clamp(min=1).double()
    inverse = (1 - beta) / (1 - beta**images)
    return (inverse * len(inverse) / inverse.sum()).float()
