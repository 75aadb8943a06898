from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import nn

from search.course import Course, Material
from search.distillers.features import FeatureCourse, over_layers
from search.distillers.hinton import Hinton


class FitNet(Hinton):
    """
    Hints from the teacher's feature maps (FitNets; Romero et al.: arXiv 1412.6550), beside softened outputs.

    A 1 x 1 convolution brings each of the student's maps to the teacher's width; `weight` times their mean squared
    difference, averaged over the layers. The convolutions end with the training. The paper's first stage, of hints
    alone, is left out: students here begin with the teacher's own weights.
    """

    class Options(Hinton.Options):
        layers: tuple[str, ...] = Field((), max_length=64)
        """Modules whose outputs are compared; without any, the last block at each size."""
        weight: float = Field(100.0, ge=0, le=1e6)
        """Of the hints; 100 in RepDistiller and mdistiller."""

    options: Options

    def course(self, student: nn.Module, material: Material) -> Course:
        hint, options = over_layers(F.mse_loss), self.options
        return FeatureCourse(student, material, self, hint, options.weight, options.layers, adapt=True)
