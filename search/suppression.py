"""
From what a detector's heads say to boxes, in fixed shapes: for n images always as many rows, of which those that say
nothing are zeros.

No shape and no branch depends on values, so that torch.fx can follow it, and an exporter too. Formulas and order are
those of torchvision's own inference, which answers with as many boxes as it finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional
from torchvision.ops import nms

fx.wrap("nms")

_PLACE = 1e-13
"""What a place further back takes from a score: of 100,000 places less than two scores of .1 differ by at least."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """
    Of n images: boxes `[n, k, 4]` in pixels, scores `[n, k]`, and groups `[n, k]` (classes, or levels of a pyramid) in
    which boxes compete, numbers from 0; `count` is k. A box that is none has score 0 and no area.
    """

    boxes: Tensor
    scores: Tensor
    groups: Tensor
    count: int

    @classmethod
    def of(cls, parts: Sequence[Candidates]) -> Candidates:
        """All of several."""
        boxes, scores, groups = (
            torch.cat([getattr(part, name) for part in parts], 1) for name in ("boxes", "scores", "groups")
        )
        return cls(boxes, scores, groups, sum(part.count for part in parts))

    def within(self, size: int, *, score: float, side: float = 0.0) -> Candidates:
        """Cut to the image; without those whose score is not above `score`, or one of whose sides is below `side`."""
        boxes = torch.clamp(self.boxes, 0, size)
        sides = boxes[..., 2:] - boxes[..., :2]
        stays = (self.scores > score) & (sides[..., 0] >= side) & (sides[..., 1] >= side)
        return Candidates(boxes * stays[..., None], self.scores * stays, self.groups, self.count)


@dataclass(frozen=True, slots=True)
class Suppression:
    """
    Of boxes of one group that overlap by more than `threshold` the better one stays (non-maximum suppression).

    `size` is that of the image, `groups` how many there are. `at_once` treats all images in one step, whose time is
    quadratic in their number: that is for exporters, which cannot walk through a batch.
    """

    threshold: float
    size: int
    groups: int
    at_once: bool = False

    def __call__(self, found: Candidates) -> Candidates:
        """The same candidates, with score 0 where a better one stands for it."""
        apart = self.size + 1  # groups are laid beside each other, so that they do not overlap
        boxes = found.boxes + (found.groups * apart)[..., None]
        if self.at_once:
            boxes = boxes + (numbers(found.scores) * (self.groups * apart))[..., None]
            scores = found.scores.flatten()
            kept = nms(boxes.flatten(0, 1), scores, self.threshold)
            stays = torch.index_fill(torch.zeros_like(scores), 0, kept, 1).view_as(found.scores)
        else:
            stays = torch.zeros_like(found.scores)
            for row, each, scores in zip(stays, boxes, found.scores, strict=True):
                row[nms(each, scores, self.threshold)] = 1
        return Candidates(found.boxes, found.scores * stays, found.groups, found.count)


def numbers(rows: Tensor) -> Tensor:
    """The number of each row of `[n, k]`, `[n, 1]`, from 0."""
    return torch.cumsum(torch.ones_like(rows[:, :1]), 0) - 1


def best(found: Candidates, most: int) -> Tensor:
    """`[n, most, 6]`: box, score and group of the best, by falling score; rows of zeros where there are no more."""
    count = min(most, found.count)
    scores, at = top(found.scores, count)
    boxes, groups = picked(found.boxes, at), torch.gather(found.groups, 1, at)
    rows = torch.cat([boxes, scores[..., None], groups[..., None]], -1) * (scores > 0)[..., None]
    return functional.pad(rows, (0, 0, 0, most - count))


def top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """
    The `count` largest of `[..., k]` by falling score, and where they are; of equal ones the first. A detector that is
    hardly trained has many equal ones, of which `torch.topk` takes any and ONNX's takes the first.
    """
    ranks = scores.double() - torch.cumsum(torch.ones_like(scores).double(), -1) * _PLACE
    _, at = torch.topk(ranks, count, -1)
    return torch.gather(scores, -1, at), at


def picked(boxes: Tensor, at: Tensor) -> Tensor:
    """Of boxes `[n, m, 4]` those numbered `at` `[n, k]`."""
    return torch.gather(boxes, 1, at[..., None].expand(-1, -1, 4))


def decoded(
    codes: Tensor, sides: Tensor, middles: Tensor, weights: tuple[float, float, float, float], most: float
) -> Tensor:
    """
    Boxes `[..., 4]` of codes `[..., 4]`, which tell them from anchors known by `sides` and `middles` `[..., 2]`;
    logarithms of sides are at most `most` (Ren et al., "Faster R-CNN", equation 2).
    """
    x, y, w, h = (codes[..., at] / weights[at] for at in range(4))
    middle = torch.stack([x, y], -1) * sides + middles
    half = torch.exp(torch.clamp(torch.stack([w, h], -1), max=most)) * sides * 0.5
    return torch.cat([middle - half, middle + half], -1)


def reached(distances: Tensor, sides: Tensor, middles: Tensor) -> Tensor:
    """Boxes `[..., 4]` whose edges are so many sides of an anchor away from its middle (FCOS)."""
    return torch.cat([distances[..., :2] * -sides + middles, distances[..., 2:] * sides + middles], -1)
