from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from search.course import Course, Material
from search.distillers.features import FeatureCourse, over_layers
from search.distillers.hinton import Hinton


class Attention(Hinton):
    """
    Where the teacher looks (attention transfer; Zagoruyko, Komodakis: arXiv 1612.03928), beside softened outputs.

    Of each map the mean of its channels to the power `power`, as a vector of length one; `weight` times the mean
    squared difference of the student's to the teacher's, averaged over the layers. Widths need not agree.
    """

    class Options(Hinton.Options):
        layers: tuple[str, ...] = Field((), max_length=64)
        """Modules whose outputs are compared; without any, the last block at each size."""
        weight: float = Field(1000.0, ge=0, le=1e6)
        """Of the attention; 1000 in RepDistiller and mdistiller."""
        power: int = Field(2, ge=1, le=8)

    options: Options

    def course(self, student: nn.Module, material: Material) -> Course:
        def apart(mine: Tensor, theirs: Tensor) -> Tensor:
            return F.mse_loss(_attention(mine, self.options.power), _attention(theirs, self.options.power))

        return FeatureCourse(student, material, self, over_layers(apart), self.options.weight, self.options.layers)


def _attention(features: Tensor, power: int) -> Tensor:
    """`[n, channels, height, width]` -> `[n, height * width]`, rows of length one."""
    return F.normalize(features.abs().pow(power).mean(dim=1).flatten(1))
