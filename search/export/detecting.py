"""A detector as it is handed out, a network from images to boxes, and whether another finds the same boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from search.detector import Detector, Ssd, TwoStage
from search.errors import VerificationFailed
from search.export.verify import student_answers

LEAST_OVERLAP = 0.999
"""Of a box and its counterpart, intersection over union; or"""
NEAR = 1e-2
"""pixels between their edges at most, for boxes that have hardly any area."""
TOLERANCE = 1e-3
"""Largest difference of their scores."""
ALONE = 0.02
"""
Largest share of boxes, over all batches, without a counterpart. Two forms round differently, by a millionth or so;
where a score or an overlap is that near to a threshold, or two scores are to each other at a limit, a box comes or
goes, and with it what it suppresses. That is rare; whatever else goes wrong moves every box.
"""
MOST_ALONE = 0.9
"""The same of a detector that is hardly trained: where many scores are equal but for rounding, rounding decides."""
_ROUNDING = 3e-7
"""How differently a layer's outputs are rounded, as a share of their mean size, to see what that does."""
_TRIES = 3
_STEPS = 20
_BEST, _LIKELY = 8, 4.0
"""So many logits of an image are raised, up to there."""
_RISE = 0.1
"""Of pixels, in a step; images have a standard deviation of about 1."""


class Detecting(nn.Module):
    """`[n, found, 6]` of images `[n, c, size, size]`, see `Detector.detect`; all images in one step."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.train(detector.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.detector.detect(images, at_once=True)


def provoked(detector: Detector, images: Tensor) -> Tensor:
    """
    The images, changed until the detector, in evaluation mode, finds something in each, if that takes few steps.

    Noise as a rule shows it nothing, and where nothing is found nothing can be compared. Every step moves pixels by the
    sign of the gradient of what its heads think most likely (Goodfellow et al., "Explaining and Harnessing Adversarial
    Examples", 2015).
    """
    for _ in range(_STEPS):
        if finds(detector, images).all():
            break
        images = images.clone().requires_grad_()
        best = [torch.topk(logits, min(_BEST, logits.shape[1]))[0] for logits in _logits(detector, images)]
        likely = torch.cat(best, 1).clamp_max(_LIKELY)
        (gradient,) = torch.autograd.grad(likely.sum(), images)
        images = (images + _RISE * gradient.sign()).detach()
    return images


def finds(detector: Detector, images: Tensor) -> Tensor:
    """Whether it finds something in each of the images, `[n]`."""
    with torch.no_grad():
        return (detector.detect(images)[..., 4] > 0).any(1)


def _logits(detector: Detector, images: Tensor) -> list[Tensor]:
    """What the heads say for there being something, of any class and anywhere, each `[n, ...]`."""
    answers, n = detector(images), len(images)
    if isinstance(detector, TwoStage):
        scores = answers["scores"]
        objectness = [level.flatten(1) for level in answers["objectness"]]
        return [torch.cat(objectness, 1), (scores[:, 1:] - scores[:, :1]).reshape(n, -1)]
    logits = answers["cls_logits"]
    if isinstance(detector, Ssd):
        logits = logits[..., 1:] - logits[..., :1]
    return [(logits + answers.get("bbox_ctrness", 0)).flatten(1)]


def restless(student: Detecting, questions: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """
    The share of boxes that may be without a counterpart in another form of the student: twice the share that comes or
    goes when its own layers round otherwise, at least `ALONE` and at most `MOST_ALONE`.
    """
    generator, worst = torch.Generator().manual_seed(0), 0.0

    def rounded(module: nn.Module, given: object, answer: Tensor) -> Tensor:
        return answer + _ROUNDING * answer.abs().mean() * torch.randn(answer.shape, generator=generator)

    layers = [module for module in student.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(rounded) for layer in layers]
    try:
        for _ in range(_TRIES):
            compared = _compared(expected, student_answers(student, questions))
            worst = max(worst, compared.lonely / max(compared.boxes, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return min(MOST_ALONE, max(ALONE, 2 * worst))


@dataclass(frozen=True, slots=True)
class _Compared:
    """Of so many `boxes` on both sides those without counterpart, and the largest difference of the others' scores."""

    boxes: int
    lonely: int
    largest: float


def _compared(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> _Compared:
    largest, lonely, boxes = 0.0, 0, 0
    for name, batch in expected.items():
        for ones, others in zip(batch, found[name], strict=True):
            ones, others = (rows[rows[:, 4] > 0] for rows in (ones, others))
            pairs = _pairs(ones, others)
            boxes += len(ones) + len(others)
            lonely += len(ones) + len(others) - 2 * len(pairs)
            largest = max([largest, *((ones[one, 4] - others[other, 4]).abs().item() for one, other in pairs)])
    return _Compared(boxes, lonely, largest)


def difference(
    form: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], *, alone: float = ALONE
) -> float:
    """
    The largest difference of scores between boxes `[n, found, 6]`, over all batches. Their order does not matter: a
    box's counterpart is of the same class and image, and fits best.

    Raises:
        VerificationFailed: more than a share of `alone` has no counterpart, or the shapes differ.
    """
    for name, batch in expected.items():
        if found[name].shape != batch.shape:
            raise VerificationFailed(
                f"{form}: detections are {list(found[name].shape)}, the student's {list(batch.shape)} ({name} batch)"
            )
    compared = _compared(expected, found)
    if compared.lonely > alone * compared.boxes:
        raise VerificationFailed(
            f"{form}: {compared.lonely} of {compared.boxes} boxes have no counterpart of the same class that overlaps "
            f"by {LEAST_OVERLAP:g} and whose score differs by no more than {TOLERANCE:g}"
        )
    return compared.largest


def _pairs(ones: Tensor, others: Tensor) -> list[tuple[int, int]]:
    """Rows that are each other's counterparts, none used twice."""
    near = (ones[:, None, :4] - others[None, :, :4]).abs().amax(2) <= NEAR
    fits = box_iou(ones[:, :4], others[:, :4]).nan_to_num(0).maximum(near.float())
    fits[ones[:, None, 5] != others[None, :, 5]] = 0
    fits[~((ones[:, None, 4] - others[None, :, 4]).abs() <= TOLERANCE)] = 0
    pairs, taken = [], set()
    for one, row in enumerate(fits):
        best = max((other for other in range(len(others)) if other not in taken), key=row.__getitem__, default=None)
        if best is not None and row[best] >= LEAST_OVERLAP:
            taken.add(best)
            pairs.append((one, best))
    return pairs
