from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from search.part import Part


class Dist:
    """
    Distillation from a stronger teacher by relations (DIST; Huang et al., NeurIPS 2022: arXiv 2205.10536).

    The student's softened probabilities shall correlate with the teacher's, within every image (over classes) and
    within every class (over the images of the batch): `T^2 * (beta * (1 - r_images) + gamma * (1 - r_classes))`, r the
    mean Pearson correlation, plus `ce` times the cross-entropy with the labels. Its paper adds `ce` = 1; 0 here.
    """

    class Options(Part):
        temperature: float = Field(4.0, gt=0, le=100)
        beta: float = Field(1.0, ge=0, le=1000)
        """Of the correlation within images."""
        gamma: float = Field(1.0, ge=0, le=1000)
        """Of the correlation within classes."""
        ce: float = Field(0.0, ge=0, le=1000)
        """Of the cross-entropy with the labels."""

    needs_teacher: ClassVar[bool] = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """`logits`, `teacher_logits` `[n, classes]`, `labels` `[n]` -> scalar."""
        assert teacher_logits is not None  # noqa: S101 - needs_teacher is True
        options = self.options
        answer, target = (F.softmax(one / options.temperature, dim=1) for one in (logits, teacher_logits))
        within_images = 1 - _correlation(answer, target)
        within_classes = 1 - _correlation(answer.T, target.T)
        loss = options.temperature**2 * (options.beta * within_images + options.gamma * within_classes)
        return loss if options.ce == 0 else loss + options.ce * F.cross_entropy(logits, labels)


def _correlation(rows: Tensor, others: Tensor) -> Tensor:
    """Pearson's, of every row with the same one of the other, averaged."""
    centred, also = (one - one.mean(dim=1, keepdim=True) for one in (rows, others))
    return F.cosine_similarity(centred, also, dim=1).mean()
