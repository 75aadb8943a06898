from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from search.batches import Batch
from search.course import Course, Material, Stage
from search.distillers.hinton import Hinton


class Contrast(Hinton):
    """
    The student shall tell which of the batch's images the teacher saw (of the class of CRD; Tian et al.: arXiv
    1910.10699), beside softened outputs.

    Both embeddings, the inputs of the last linear layers, are projected to `width` and to length one; cross-entropy of
    finding the teacher's among those of the batch, and the student's. CRD keeps a memory of 16,384 negatives; here they
    are the batch's own, and nothing is kept.
    """

    class Options(Hinton.Options):
        weight: float = Field(0.8, ge=0, le=1e6)
        """Of the contrast; 0.8 in mdistiller's CRD."""
        width: int = Field(128, ge=1, le=4096)
        """Of the projections."""
        sharpness: float = Field(0.07, gt=0, le=10)
        """Temperature of the contrast."""

    options: Options

    def course(self, student: nn.Module, material: Material) -> Course:
        """Raises `UserError` when the network has no linear layer."""
        material.sights.linear()
        return _Course(student, material, self)


class _Course(Course):
    def __init__(self, student: nn.Module, material: Material, distiller: Contrast) -> None:
        super().__init__(student)
        self._distiller = distiller
        self._student, self._teacher, _ = material.watched(student)
        image = material.first()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(material.seed)
            for name, watched in (("student", self._student), ("teacher", self._teacher)):
                embedding = watched.dry(image).embedding
                assert embedding is not None  # noqa: S101 - there is a head
                self.extras[name] = nn.Linear(embedding.shape[1], distiller.options.width)

    def loss(self, batch: Batch, stage: Stage, step: int) -> Tensor:
        with torch.no_grad():
            target = self._teacher(batch.images)
        answer = self._student(batch.images)
        rows = [
            F.normalize(self.extras[name](seen.embedding)) for name, seen in (("student", answer), ("teacher", target))
        ]
        options = self._distiller.options
        alike = rows[0] @ rows[1].T / options.sharpness
        own = torch.arange(len(alike), device=alike.device)
        contrast = (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
        return options.weight * contrast + self._distiller.loss(answer.logits, batch.labels, target.logits)
