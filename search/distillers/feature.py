from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from search.course import Course, Material
from search.distillers.features import FeatureCourse, over_layers
from search.distillers.hinton import Hinton


class Feature(Hinton):
    """
    The teacher's feature maps on the channels that the student has kept, beside softened outputs: what the block
    library does to one block, for the whole network.

    The mean squared difference in units of the teacher's variance, averaged over the layers. No projection is needed:
    widths are cut from the end of the teacher's order of channels. Where a width is cut in several places, as after a
    concatenation, channels past the first cut are compared with others than their own; leave such layers out.
    """

    class Options(Hinton.Options):
        layers: tuple[str, ...] = Field((), max_length=64)
        """Modules whose outputs are compared; without any, the last block at each size."""
        weight: float = Field(1.0, ge=0, le=1e6)
        """Of the features."""

    options: Options

    def course(self, student: nn.Module, material: Material) -> Course:
        return FeatureCourse(student, material, self, over_layers(_missed), self.options.weight, self.options.layers)


def _missed(mine: Tensor, theirs: Tensor) -> Tensor:
    """Share of the variance of the teacher's maps that the student's miss, on the channels both have."""
    kept = theirs[:, : mine.shape[1]]
    return F.mse_loss(mine, kept) / kept.var().clamp(min=1e-8)
