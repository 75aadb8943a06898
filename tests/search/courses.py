"""A small survey and data for the tests of distillers."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn

from search.batches import Cached, Normalise
from search.catalog import BUILT_IN, Catalog
from search.course import Material
from search.plugins import DatasetInfo, tasks_of
from search.quality import outputs
from search.spec import SpaceSpec
from search.surgery import Survey, survey
from search.teachers.small import SmallResNet

CATALOG = Catalog()
INFO = DatasetInfo("noise", ("a", "b", "c", "d"), 3, 16, (0.5,) * 3, (0.25,) * 3, mirror=False, pad=1)


NAMES = [
    name for name in sorted(BUILT_IN["distillers"]) if "classification" in tasks_of(CATALOG.load("distillers", name))
]
"""Of the distillers that classifiers are distilled with."""


@cache
def surveyed() -> Survey:
    teacher = SmallResNet(SmallResNet.Options(width=8, depth=1)).build(INFO.shape, len(INFO.classes), seed=1)
    example = torch.randn(2, *INFO.shape, generator=torch.Generator().manual_seed(0))
    return survey(teacher, example, SpaceSpec(divisor=2))


@cache
def pool(views: int = 2, count: int = 24) -> Cached:
    """Noise on flat colours, one for each class, and the teacher's logits for it."""
    rng = np.random.default_rng(0)
    labels = np.tile(np.arange(count) % len(INFO.classes), views)
    colours = np.linspace(40, 215, len(INFO.classes))[labels][:, None, None, None]
    images = np.clip(colours + rng.normal(0, 20, (len(labels), *INFO.shape)), 0, 255).astype(np.uint8)
    normalise = Normalise(INFO)
    logits = outputs(surveyed().teacher, images, normalise)
    return Cached(images, labels.astype(np.int64), logits, normalise, seed=3)


def material(steps: int = 20, views: int = 2) -> Material:
    return Material.of(surveyed(), pool(views), views, steps, seed=5)


def student(*, least: bool = True) -> nn.Module:
    found = surveyed()
    return found.graft(found.space.least() if least else found.space.full())
