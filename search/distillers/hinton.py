from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from search.part import Part


class Hinton:
    """
    Knowledge distillation by softened outputs (Hinton, Vinyals, Dean: arXiv 1503.02531).

    `alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * CE`, means over the batch. Pure KL
    at T = 4 is the default.
    """

    class Options(Part):
        temperature: float = Field(4.0, gt=0, le=100)
        alpha: float = Field(1.0, ge=0, le=1)
        """Share of the softened part; the rest is cross-entropy with the labels."""

    needs_teacher: ClassVar[bool] = True

    def __init__(self, options: Options) -> None:
        self.options = options

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """`logits`, `teacher_logits` `[n, classes]`, `labels` `[n]` -> scalar."""
        assert teacher_logits is not None  # noqa: S101 - needs_teacher is True
        temperature, alpha = self.options.temperature, self.options.alpha
        soft = F.kl_div(
            F.log_softmax(logits / temperature, dim=1),
            F.log_softmax(teacher_logits / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
        loss = alpha * temperature**2 * soft
        return loss if alpha == 1 else loss + (1 - alpha) * F.cross_entropy(logits, labels)
