from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from search.course import Course, Material
from search.distillers.features import FeatureCourse
from search.distillers.hinton import Hinton
from search.taps import Seen


class Rkd(Hinton):
    """
    How images lie to each other (relational distillation; Park et al.: arXiv 1904.05068), beside softened outputs.

    Embeddings are the inputs of the last linear layer. Pairs: distances, in units of their mean. Triples: the cosines
    of all angles. Huber losses of the student's to the teacher's, `distance` and `angle` times.
    """

    class Options(Hinton.Options):
        distance: float = Field(25.0, ge=0, le=1e6)
        """Of the distances; 25 in the paper and in mdistiller."""
        angle: float = Field(50.0, ge=0, le=1e6)
        """Of the angles; 50 there."""

    options: Options

    def course(self, student: nn.Module, material: Material) -> Course:
        """Raises `UserError` when the network has no linear layer."""
        material.sights.linear()
        options = self.options

        def hint(answer: Seen, target: Seen) -> Tensor:
            mine, theirs = answer.embedding, target.embedding
            assert mine is not None and theirs is not None  # noqa: S101, PT018 - there is a head
            distance = F.smooth_l1_loss(distances(mine), distances(theirs))
            angle = F.smooth_l1_loss(angles(mine), angles(theirs))
            return options.distance * distance + options.angle * angle

        return FeatureCourse(student, material, self, hint, 1.0)


def distances(embedding: Tensor) -> Tensor:
    """Of all pairs of rows `[n, width]`, `[n, n]`, in units of the mean of those that are not zero."""
    # Squares first: the gradient of a distance of zero is infinite.
    squares = (embedding.unsqueeze(0) - embedding.unsqueeze(1)).pow(2).sum(dim=2)
    found = squares.clamp(min=1e-12).sqrt()
    return found / found[squares > 0].mean() if (squares > 0).any() else found


def angles(embedding: Tensor) -> Tensor:
    """Cosines of the angles at every row of all pairs of others, `[n, n, n]`."""
    away = F.normalize(embedding.unsqueeze(0) - embedding.unsqueeze(1), dim=2)
    return torch.bmm(away, away.transpose(1, 2))
