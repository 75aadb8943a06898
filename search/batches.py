"""
From stored images to batches.

A batch is a function of a seed and a step alone, so training resumed at a step sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from search.plugins import DatasetInfo, Split

Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Batch:
    """`images` float `[n, channels, size, size]`, `labels` `[n]`, `teacher_logits` `[n, classes]` where known."""

    images: Tensor
    labels: Tensor
    teacher_logits: Tensor | None


class Source(Protocol):
    """Where training gets its batches."""

    def batch(self, step: int, size: int) -> Batch: ...


@dataclass(frozen=True, slots=True)
class Normalise:
    """uint8 images to what the network expects: `(x / 255 - mean) / std` per channel, on `device`."""

    info: DatasetInfo
    device: str = "cpu"

    def __call__(self, images: Images) -> Tensor:
        mean = torch.tensor(self.info.mean, device=self.device).view(1, -1, 1, 1)
        std = torch.tensor(self.info.std, device=self.device).view(1, -1, 1, 1)
        pixels = torch.from_numpy(images.astype(np.float32)).to(self.device)
        return pixels.div_(255).sub_(mean).div_(std)


@dataclass(frozen=True, slots=True)
class Cached:
    """
    Images with the teacher's logits for them: no teacher has to run while a student is trained.

    `images` `[n, ...]`, `labels` `[n]`, `logits` `[n, classes]` float32. The arrays may be read-only and shared.
    """

    images: Images
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    normalise: Normalise
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, step: int, size: int) -> Batch:
        at = _indices(self.seed, step, size, len(self))
        return self._take(at)

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every image once, in the order stored."""
        for start in range(0, len(self), size):
            yield self._take(np.arange(start, min(start + size, len(self))))

    def _take(self, at: NDArray[np.int64]) -> Batch:
        device = self.normalise.device
        return Batch(
            self.normalise(self.images[at]),
            torch.from_numpy(self.labels[at]).to(device),
            torch.from_numpy(self.logits[at]).to(device),
        )


@dataclass(frozen=True, slots=True)
class Augmented:
    """A split with a fresh augmentation of each image in each epoch; for training a teacher."""

    split: Split
    normalise: Normalise
    seed: int = 0

    def batch(self, step: int, size: int) -> Batch:
        at = _indices(self.seed, step, size, len(self.split))
        images = augment(self.split.images[at], self.normalise.info, np.random.default_rng([self.seed, 1, step]))
        labels = torch.from_numpy(self.split.labels[at]).to(self.normalise.device)
        return Batch(self.normalise(images), labels, None)


def augment(images: Images, info: DatasetInfo, rng: np.random.Generator) -> Images:
    """
    A random crop of every image, padded by `info.pad` pixels of its border, mirrored at random if `info.mirror`.

    `images` `[n, channels, size, size]`, the answer too; the input is left as it is.
    """
    if info.pad:
        size, span = images.shape[-1], 2 * info.pad + 1
        padded = np.pad(images, ((0, 0), (0, 0), (info.pad, info.pad), (info.pad, info.pad)), mode="edge")
        windows = sliding_window_view(padded, (size, size), axis=(2, 3))
        rows, columns = rng.integers(span, size=(2, len(images)))
        images = windows[np.arange(len(images)), :, rows, columns]
    if info.mirror:
        mirrored = rng.random(len(images)) < 0.5
        images = np.where(mirrored[:, None, None, None], images[..., ::-1], images)
    return np.ascontiguousarray(images)


def views(split: Split, info: DatasetInfo, count: int, seed: int) -> Split:
    """
    `count` fixed versions of the split, one after the other: the images as they are, then augmented copies.

    The teacher's outputs for them are worked out once and serve every student.
    """
    copies = [augment(split.images, info, np.random.default_rng([seed, 2, number])) for number in range(1, count)]
    return Split(np.concatenate([split.images, *copies]), np.tile(split.labels, count))


def _indices(seed: int, step: int, size: int, length: int) -> NDArray[np.int64]:
    """The images of a step: a fresh permutation in every epoch; an epoch's last, short batch is left out."""
    size = min(size, length)
    epoch, at = divmod(step, length // size)
    order = _permutation(seed, epoch, length)
    return order[at * size : (at + 1) * size]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(length)
