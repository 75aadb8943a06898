"""How good a network is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import nn

from search.batches import Cached, Images, Normalise
from search.errors import NonFinite

EVALUATION_BATCH = 256


@dataclass(frozen=True, slots=True)
class Quality:
    """`accuracy` 0..1; `kl` is the mean KL(teacher || network) at T = 1 in nats, 0 where there is no teacher."""

    accuracy: float
    kl: float


def outputs(model: nn.Module, images: Images, normalise: Normalise) -> NDArray[np.float32]:
    """Logits `[n, classes]` in evaluation mode for images `[n, channels, size, size]`."""
    model.eval()
    with torch.inference_mode():
        rows = [
            model(normalise(images[start : start + EVALUATION_BATCH])).float().cpu().numpy()
            for start in range(0, len(images), EVALUATION_BATCH)
        ]
    logits: NDArray[np.float32] = np.concatenate(rows)
    return logits


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of rows of `logits` `[n, classes]` whose largest entry is at `labels` `[n]`."""
    return float((logits.argmax(axis=1) == labels).mean())


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


def judged(logits: NDArray[np.float32], data: Cached, *, taught: bool = True) -> Quality:
    """
    `logits` `[n, classes]` are a network's for the images of `data`. `taught` says whether the logits of `data` are a
    teacher's; otherwise nobody asks how near to them a network comes.

    Raises:
        NonFinite: they are NaN or infinite.
    """
    if not np.isfinite(logits).all():
        raise NonFinite("the network's outputs are not finite")
    if not taught:
        return Quality(accuracy(logits, data.labels), 0.0)
    answer = F.log_softmax(torch.from_numpy(logits), dim=1)
    target = F.log_softmax(torch.from_numpy(np.array(data.logits)), dim=1)
    kl = F.kl_div(answer, target, reduction="batchmean", log_target=True)
    return Quality(accuracy(logits, data.labels), max(float(kl), 0.0))
