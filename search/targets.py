"""What a detector in training is to answer: labels of `search.boxes` as torchvision's losses want to be told them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import ops

from search.boxes import BOX, CLASS, IGNORED, KIND, OBJECT

_WITHIN = 0.5
"""Background of which at least this share lies in regions to be ignored is no background."""


@dataclass(frozen=True, slots=True)
class Target:
    """What an image is to be answered with: boxes `[k, 4]` with classes `[k]`, and regions `[j, 4]` to be ignored."""

    boxes: Tensor
    classes: Tensor
    ignored: Tensor

    def background(self, boxes: Tensor) -> Tensor:
        """Which of `boxes` `[m, 4]` may be learned from as background, where no object is."""
        areas = ops.box_area(boxes).clamp_min(torch.finfo(boxes.dtype).tiny)
        top_left = torch.maximum(boxes[:, None, :2], self.ignored[:, :2])
        sides = (torch.minimum(boxes[:, None, 2:], self.ignored[:, 2:]) - top_left).clamp_min(0)
        covered: Tensor = sides.prod(2) / areas[:, None]
        return torch.logical_not((covered >= _WITHIN).any(1))


def targets_of(labels: Tensor, background: int) -> list[Target]:
    """Labels `[n, most, 7]` as targets, with classes from `background` on. Boxes without area are left out."""
    found = []
    for rows in labels:
        boxes = rows[:, BOX]
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        objects, ignored = real & (rows[:, KIND] == OBJECT), real & (rows[:, KIND] == IGNORED)
        classes = rows[objects, CLASS].to(torch.int64) + background
        found.append(Target(boxes[objects], classes, boxes[ignored]))
    return found


def told(targets: Sequence[Target]) -> list[Mapping[str, Tensor]]:
    """Targets as torchvision wants to be told them."""
    return [{"boxes": target.boxes, "labels": target.classes} for target in targets]


def inside(anchors: Tensor, targets: Sequence[Target]) -> Tensor:
    """Whether the middle of an anchor is in an object of an image, `[n, anchors]`."""
    x, y = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(1)
    found = []
    for target in targets:
        x1, y1, x2, y2 = target.boxes[:, None].unbind(2)
        found.append(((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(0))
    return torch.stack(found)
