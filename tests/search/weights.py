"""A tiny network that was surveyed, and data that it answers: what libraries and elastic students are tried on."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from search.batches import Cached, Normalise
from search.plugins import DatasetInfo
from search.quality import outputs
from search.spec import SpaceSpec
from search.surgery import Survey, survey
from search.teachers.small import SmallResNet

INFO = DatasetInfo("noise", tuple("abcde"), 3, 16, (0.5,) * 3, (0.25,) * 3, False, 0)


@cache
def surveyed() -> Survey:
    """Widths, removals, operators and a resolution to choose."""
    network = SmallResNet(SmallResNet.Options(depth=(1, 2, 1), width=8)).build(INFO.shape, len(INFO.classes))
    example = torch.randn(2, *INFO.shape, generator=torch.Generator().manual_seed(0))
    operators = SpaceSpec(divisor=2, steps=4, operators=("low_rank", "separable"), resolutions=(12,))
    return survey(network, example, operators)


@cache
def answered() -> Cached:
    """128 images of noise with the surveyed network's logits."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (128, *INFO.shape), dtype=np.uint8)
    normalise = Normalise(INFO)
    logits = outputs(surveyed().teacher, images, normalise)
    return Cached(images, rng.integers(0, len(INFO.classes), len(images)), logits, normalise)
