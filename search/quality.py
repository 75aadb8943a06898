"""How good a network is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import nn

from search.batches import Cached, Images, Normalise
from search.boxes import CLASS, KIND, OBJECT
from search.detections import Found, judge
from search.detector import Detector
from search.errors import NonFinite
from search.plugins import DatasetInfo, Labels

EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class Quality:
    """
    `accuracy` 0..1, of a detector its mean average precision; `kl` is the mean KL(teacher || network) at T = 1 in
    nats, 0 of a detector and where there is no teacher.
    """

    accuracy: float
    kl: float


def outputs(model: nn.Module, images: Images, normalise: Normalise) -> NDArray[np.float32]:
    """
    Answers in evaluation mode to images `[n, channels, size, size]`: logits `[n, classes]`, of a `Detector` its
    detections `[n, found, 6]`.
    """
    model.eval()
    ask = model.detect if isinstance(model, Detector) else model
    with torch.inference_mode():
        rows = [
            ask(normalise(images[start : start + EVALUATION_BATCH])).float().cpu().numpy()
            for start in range(0, len(images), EVALUATION_BATCH)
        ]
    answers: NDArray[np.float32] = np.concatenate(rows)
    return answers


def merit(answers: NDArray[np.float32], labels: Labels, info: DatasetInfo) -> float:
    """What a network is judged by, 0..1: accuracy, of a detector mean average precision."""
    if info.task == "detection":
        return seen(answers, labels, info).map
    return accuracy(answers, labels)


def seen(answers: NDArray[np.float32], labels: Labels, info: DatasetInfo) -> Found:
    """How good detections are, by the dataset's own measure of which objects are too small to count as missed."""
    return judge(answers, labels, len(info.classes), least_height=info.least_height)


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of rows of `logits` `[n, classes]` whose largest entry is at `labels` `[n]`."""
    return float((logits.argmax(axis=1) == labels).mean())


@dataclass(frozen=True, slots=True)
class Grade:
    """On the test set: what a network is judged by, and what else is said of it, by name."""

    quality: Quality
    shots: Mapping[str, float]
    """Of a classifier: accuracy by how many training images a class has."""
    detection: Mapping[str, float]
    """Of a detector: `ap50`, its average precision at an overlap of .5, and `miss_rate`, of which less is better."""


def graded(answers: NDArray[np.float32], data: Cached, counts: NDArray[np.int64], *, taught: bool = True) -> Grade:
    """As `judged`, and all else there is to say; `counts` `[classes]` are images to train on (`per_class`)."""
    info = data.normalise.info
    if info.task == "detection":
        _check(answers)
        told = seen(answers, data.labels, info)
        return Grade(Quality(told.map, 0.0), {}, {"ap50": told.ap50, "miss_rate": told.miss_rate})
    return Grade(judged(answers, data, taught=taught), shots(answers, data.labels, counts), {})


def _check(answers: NDArray[np.float32]) -> None:
    if not np.isfinite(answers).all():
        raise NonFinite("the network's outputs are not finite")


def per_class(labels: Labels, info: DatasetInfo) -> NDArray[np.int64]:
    """How many images each class has, `[classes]`; of detection, how many objects."""
    if info.task == "detection":
        labels = labels[labels[..., KIND] == OBJECT][:, CLASS].astype(np.int64)
    return np.bincount(labels, minlength=len(info.classes))


def shots(logits: NDArray[np.float32], labels: NDArray[np.int64], counts: NDArray[np.int64]) -> dict[str, float]:
    """
    Accuracy among the classes with `many` training images, more than 100; `medium`, 20 to 100; and `few`, fewer than
    20: the groups of ImageNet-LT (Liu et al., CVPR 2019: arXiv 1904.05160). `counts` `[classes]` are those images.

    A group without an image to judge is left out. Empty where accuracy as a whole says as much: all classes are in one
    group, or none has twice the images of another.
    """
    if counts.max() < 2 * counts.min():
        return {}
    group = np.digitize(counts, [20, 101])[labels]
    right = logits.argmax(axis=1) == labels
    found = {
        name: float(right[group == at].mean()) for name, at in (("many", 2), ("medium", 1), ("few", 0)) if at in group
    }
    return found if len(found) > 1 else {}


def quality(model: nn.Module, data: Cached, *, taught: bool = True) -> Quality:
    """As `judged`, of a network's outputs."""
    return judged(outputs(model, data.images, data.normalise), data, taught=taught)


def judged(answers: NDArray[np.float32], data: Cached, *, taught: bool = True) -> Quality:
    """
    `answers` are a network's `outputs` for the images of `data`. `taught` says whether the logits of `data` are a
    teacher's; otherwise, and of a detector, nobody asks how near to them a network comes.

    Raises:
        NonFinite: they are NaN or infinite.
    """
    _check(answers)
    info = data.normalise.info
    reached = merit(answers, data.labels, info)
    if not taught or info.task == "detection":
        return Quality(reached, 0.0)
    answer = F.log_softmax(torch.from_numpy(answers), dim=1)
    target = F.log_softmax(torch.from_numpy(np.array(data.logits)), dim=1)
    kl = F.kl_div(answer, target, reduction="batchmean", log_target=True)
    return Quality(reached, max(float(kl), 0.0))
