"""
From stored images to batches.

A batch is a function of a seed and a step alone, so training resumed at a step sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor

from search import boxes
from search.device import free_bytes, worth_keeping
from search.plugins import DatasetInfo, Labels, Split

Images = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Batch:
    """
    `images` float `[n, channels, size, size]`, `labels` `[n]` (of detection rows of `search.boxes`, `[n, most, 7]`),
    `teacher_logits` `[n, classes]` where known.
    """

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

    def __call__(self, images: Images | Tensor) -> Tensor:
        """Images `[n, channels, size, size]` of the host, or a tensor of them that is on `device` already."""
        mean, std = _scale(self.info.mean, self.info.std, self.device)
        pixels = images if isinstance(images, Tensor) else _moved(images, self.device)
        return pixels.to(torch.float32).sub_(mean).div_(std)


@lru_cache(maxsize=8)
def _scale(mean: tuple[float, ...], std: tuple[float, ...], device: str) -> tuple[Tensor, Tensor]:
    """Both in units of a pixel, `[1, channels, 1, 1]`."""
    with torch.inference_mode(False):  # whoever asks first may be evaluating, the next one training
        pixels = 255 * torch.tensor([mean, std], device=device)
    return pixels[0].view(1, -1, 1, 1), pixels[1].view(1, -1, 1, 1)


def _moved(array: NDArray[Any], device: str) -> Tensor:
    """To a GPU through pinned memory, so that the host does not wait for the copy."""
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    return tensor if device == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class Cached:
    """
    Images with the teacher's logits for them: no teacher has to run while a student is trained.

    `images` `[n, ...]`, `labels` `[n]` (of detection `[n, most, 7]`), `logits` `[n, classes]` float32. The arrays may
    be read-only and shared.
    """

    images: Images
    labels: Labels
    logits: NDArray[np.float32]
    normalise: Normalise
    seed: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, step: int, size: int) -> Batch:
        return self.pick(self.drawn(step, size))

    def drawn(self, step: int, size: int) -> NDArray[np.int64]:
        """Which images the batch of a step holds, `[size]`."""
        return _indices(self.seed, step, size, len(self))

    def in_order(self, size: int) -> Iterator[Batch]:
        """Every image once, in the order stored."""
        for start in range(0, len(self), size):
            yield self.pick(np.arange(start, min(start + size, len(self))))

    def targets(self) -> Labels:
        return self.labels

    def pick(self, at: NDArray[np.int64]) -> Batch:
        """The images at `at` `[n]`, in that order."""
        device = self.normalise.device
        return Batch(
            self.normalise(self.images.take(at, axis=0)),
            _moved(self.labels[at], device),
            _moved(self.logits[at], device),
        )


@dataclass(frozen=True, slots=True)
class Resident:
    """The same set kept whole on the device, as uint8: a batch is a gather there. Gives the batches that it gives."""

    images: Tensor
    labels: Tensor
    logits: Tensor
    normalise: Normalise
    seed: int

    @classmethod
    def of(cls, cached: Cached) -> Resident:
        device = cached.normalise.device
        images, labels, logits = (_moved(array, device) for array in (cached.images, cached.labels, cached.logits))
        return cls(images, labels, logits, cached.normalise, cached.seed)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, step: int, size: int) -> Batch:
        return self.pick(self.drawn(step, size))

    def drawn(self, step: int, size: int) -> NDArray[np.int64]:
        """Which images the batch of a step holds, `[size]`."""
        return _indices(self.seed, step, size, len(self))

    def targets(self) -> Labels:
        return self.labels.cpu().numpy()

    def pick(self, at: NDArray[np.int64]) -> Batch:
        """The images at `at` `[n]`, in that order."""
        there = _moved(at, self.normalise.device)
        return Batch(self.normalise(self.images[there]), self.labels[there], self.logits[there])


def placed(cached: Cached) -> Cached | Resident:
    """The set where training reads it fastest: on the GPU when it fits there, otherwise where it is."""
    device = cached.normalise.device
    size = cached.images.nbytes + cached.labels.nbytes + cached.logits.nbytes
    return Resident.of(cached) if device != "cpu" and worth_keeping(size, free_bytes(device)) else cached


@dataclass(frozen=True, slots=True)
class Augmented:
    """A split with a fresh augmentation of each image in each epoch; for training a teacher."""

    split: Split
    normalise: Normalise
    seed: int = 0

    def batch(self, step: int, size: int) -> Batch:
        at = _indices(self.seed, step, size, len(self.split))
        drawn = Split(self.split.images[at], self.split.labels[at])
        shown = augment(drawn, self.normalise.info, np.random.default_rng([self.seed, 1, step]))
        return Batch(self.normalise(shown.images), _moved(shown.labels, self.normalise.device), None)


def augment(split: Split, info: DatasetInfo, rng: np.random.Generator) -> Split:
    """
    A random crop of every image, padded by `info.pad` pixels of its border, mirrored at random if `info.mirror`.

    Boxes move with what they are drawn around. The input is left as it is.
    """
    images, labels, size, pad = split.images, split.labels, info.size, info.pad
    detection = info.task == "detection"
    if pad:
        padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)), mode="edge")
        windows = sliding_window_view(padded, (size, size), axis=(2, 3))
        rows, columns = rng.integers(2 * pad + 1, size=(2, len(images)))
        images = windows[np.arange(len(images)), :, rows, columns]
        labels = boxes.shifted(labels, pad - rows, pad - columns, size) if detection else labels
    if info.mirror:
        mirrored = rng.random(len(images)) < 0.5
        images = np.where(mirrored[:, None, None, None], images[..., ::-1], images)
        labels = np.where(mirrored[:, None, None], boxes.mirrored(labels, size), labels) if detection else labels
    return Split(np.ascontiguousarray(images), labels)


def unlabelled(count: int, info: DatasetInfo) -> Labels:
    """Labels of so many images that show nothing, or class 0."""
    return boxes.packed([()] * count) if info.task == "detection" else np.zeros(count, dtype=np.int64)


def views(split: Split, info: DatasetInfo, count: int, seed: int) -> Split:
    """
    `count` fixed versions of the split, one after the other: the images as they are, then augmented copies.

    The teacher's outputs for them are worked out once and serve every student.
    """
    copies = [augment(split, info, np.random.default_rng([seed, 2, number])) for number in range(1, count)]
    whole = [split, *copies]
    return Split(np.concatenate([one.images for one in whole]), np.concatenate([one.labels for one in whole]))


def _indices(seed: int, step: int, size: int, length: int) -> NDArray[np.int64]:
    """The images of a step: a fresh permutation in every epoch; an epoch's last, short batch is left out."""
    size = min(size, length)
    epoch, at = divmod(step, length // size)
    order = _permutation(seed, epoch, length)
    return order[at * size : (at + 1) * size]


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, length: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 0, epoch]).permutation(length)
