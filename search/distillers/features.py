"""What distillers by features share: student and teacher watched at the same modules, and a loss on what they show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from search.batches import Batch
from search.course import Course, Material, Stage
from search.distillers.hinton import Hinton
from search.taps import Seen

Hint = Callable[[Seen, Seen], Tensor]
"""How far what the student shows is from what the teacher shows, a scalar."""


class FeatureCourse(Course):
    """
    `weight` times a hint, plus plain distillation by softened outputs.

    Both networks are watched at `layers`, without any at the last block of each size, and at the input of their last
    linear layer. With `adapt` a 1 x 1 convolution brings every map of the student to the teacher's width. It begins
    as the identity: channels are cut from the end of the teacher's order, so the first ones are the teacher's first.

    Raises:
        UserError: there is no such layer.
    """

    def __init__(
        self,
        student: nn.Module,
        material: Material,
        soft: Hinton,
        hint: Hint,
        weight: float,
        layers: Sequence[str] = (),
        *,
        adapt: bool = False,
    ) -> None:
        super().__init__(student)
        self._soft, self._hint, self._weight = soft, hint, weight
        self._student, self._teacher, taps = material.watched(student, layers)
        self._adapt = adapt
        if adapt:
            shown = self._student.dry(material.first())
            widths = [features.shape[1] for features in shown.features]
            self.extras["adapters"] = nn.ModuleList(
                adapter(width, tap.shape[0]) for width, tap in zip(widths, taps, strict=True)
            )

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        with torch.no_grad():
            target = self._teacher(batch.images)
        answer = self._student(batch.images)
        if self._adapt:
            rows = zip(self.extras["adapters"].children(), answer.features, strict=True)
            answer = Seen(answer.logits, [adapter(features) for adapter, features in rows], answer.embedding)
        hint = self._weight * self._hint(answer, target)
        return hint + self._soft.loss(answer.logits, batch.labels, target.logits)


def adapter(width: int, wanted: int) -> nn.Conv2d:
    """A 1 x 1 convolution that hands on the channels there are, and answers with zero for the others."""
    made = nn.Conv2d(width, wanted, 1, bias=False)
    nn.init.dirac_(made.weight)
    return made


def over_layers(loss: Callable[[Tensor, Tensor], Tensor]) -> Hint:
    """The mean, over the layers, of a loss of two maps `[n, channels, height, width]` of one size."""

    def hint(answer: Seen, target: Seen) -> Tensor:
        pairs = zip(answer.features, target.features, strict=True)
        return torch.stack([loss(*alike(mine, theirs)) for mine, theirs in pairs]).mean()

    return hint


def alike(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps at the smaller of their sizes: a student may shrink its images first."""
    size = min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3])
    return _shrunk(one, size), _shrunk(other, size)


def _shrunk(features: Tensor, size: tuple[int, int]) -> Tensor:
    return features if features.shape[2:] == size else F.adaptive_avg_pool2d(features, size)
