from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor

from search.part import Part
from search.spec import Task


class Supervised:
    """
    The labels alone, no teacher: how teachers are trained, and the control for every distiller. Cross-entropy, of a
    detector its own losses.
    """

    class Options(Part):
        label_smoothing: float = Field(0.0, ge=0, lt=1)

    needs_teacher: ClassVar[bool] = False
    tasks: ClassVar[tuple[Task, ...]] = ("classification", "detection")

    def __init__(self, options: Options) -> None:
        self.options = options

    def loss(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """`logits` `[n, classes]`, `labels` `[n]` -> scalar; the teacher is not read."""
        return F.cross_entropy(logits, labels, label_smoothing=self.options.label_smoothing)
