"""
How good detections are.

Average precision is COCO's, counted by pycocotools. The log-average miss rate is that of Dollár, Wojek, Schiele and
Perona, "Pedestrian Detection: An Evaluation of the State of the Art" (PAMI 2012), over the objects that CityPersons
(Zhang, Benenson and Schiele, CVPR 2017) calls reasonable: no well-kept library has it.

Detections are `[n, found, 6]` float32: the box as in `search.boxes`, then score and class. A row with a score of 0 is
no detection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import coco, cocoeval

from search.boxes import BOX, CLASS, IGNORED, KIND, NOTHING, OBJECT, VISIBLE, X1, X2, Y1, Y2, Boxes, areas

SCORE, FOUND_CLASS = 4, 5
FOUND_COLUMNS = 6
Detections = NDArray[np.float32]

_MOST = 100
"""Detections of a class in an image that COCO looks at, the best ones."""
_OVERLAP = 0.5
_RATES = np.logspace(-2, 0, 9)
"""False detections per image at which the miss rate is read."""
_EXPANSION = 1.25
"""Detections lower than the least height by more than this factor are not looked at ("expanded filtering")."""
_LEAST_RATE = 1e-10
"""Stands for a miss rate of 0, of which there is no logarithm; as in the authors' code."""

# Both tell of their progress on the standard output; to redirect it would take it from other threads too.
coco.print = cocoeval.print = lambda *_: None


@dataclass(frozen=True, slots=True)
class Found:
    """
    `map`, mean average precision, over overlaps of .5 to .95, and `ap50`, at .5, each 0..1 and a mean over classes.

    `miss_rate` is the log-average miss rate, 0..1, the lower the better, a mean over classes. Classes without an object
    to be found are left out of the means; where there is none at all, the precisions are 0 and the miss rate is 1.
    """

    map: float
    ap50: float
    miss_rate: float


def judge(
    detections: Detections, labels: Boxes, classes: int, *, least_height: float = 50, least_visible: float = 0.65
) -> Found:
    """
    Detections `[n, found, 6]` of images whose labels are `[n, most, 7]`.

    The miss rate leaves out objects lower than `least_height` pixels or of which a share of less than `least_visible`
    is seen: whether they are found or missed does not count. The defaults are CityPersons', of images 1024 pixels high.
    """
    precision = _precision(detections, labels, classes)
    rates = [
        rate
        for number in range(classes)
        if (rate := miss_rate(detections, labels, number, least_height, least_visible)) is not None
    ]
    seen = precision[:, :, (precision > -1).all(axis=(0, 1))]
    if not seen.size:
        return Found(0.0, 0.0, 1.0)
    return Found(float(seen.mean()), float(seen[0].mean()), float(np.mean(rates)) if rates else 1.0)


def _precision(detections: Detections, labels: Boxes, classes: int) -> NDArray[np.float64]:
    """`[overlaps, recalls, classes]`, overlaps from .5 in steps of .05; -1 for classes without an object."""
    shown, told = coco.COCO(), coco.COCO()
    frame = {
        "images": [{"id": image} for image in range(len(labels))],
        "categories": [{"id": number} for number in range(classes)],
    }
    shown.dataset = frame | {
        "annotations": [
            {**about, "category_id": int(row[CLASS]), "iscrowd": int(row[KIND] == IGNORED)}
            for about, row in _annotated(labels, KIND)
        ]
    }
    told.dataset = frame | {
        "annotations": [
            {**about, "category_id": int(row[FOUND_CLASS]), "score": float(row[SCORE])}
            for about, row in _annotated(detections, SCORE)
        ]
    }
    shown.createIndex()
    told.createIndex()
    evaluation = cocoeval.COCOeval(shown, told, "bbox")
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, np.inf]], ["all"]
    evaluation.params.maxDets = [_MOST]
    evaluation.evaluate()
    evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"][:, :, :, 0, 0]
    return precision


def _annotated(array: NDArray[np.float32], column: int) -> Iterator[tuple[Mapping[str, object], NDArray[np.float32]]]:
    """Every row with anything in `column`, and what an annotation says of its box."""
    images, places = np.nonzero(array[..., column])
    for number, (image, place) in enumerate(zip(images.tolist(), places.tolist(), strict=True), start=1):
        row = array[image, place]
        x1, y1, x2, y2 = row[BOX].tolist()
        width, height = x2 - x1, y2 - y1
        about = {"id": number, "image_id": image, "bbox": [x1, y1, width, height], "area": width * height}
        yield about, row  # numbers begin with 1: an id of 0 says "no match" to pycocotools


def miss_rate(
    detections: Detections, labels: Boxes, number: int, least_height: float, least_visible: float
) -> float | None:
    """
    The log-average miss rate of one class, or None where none of its objects counts.

    Detections of all images are taken in order of score. Each is a hit of the free object that it overlaps most, by .5
    of their union or more; else it is left out if half of itself or more lies within something ignored; else it is
    false. Where a detector never errs as often as the rate at which it is read, its lowest miss rate stands.
    """
    judged: list[tuple[float, bool]] = []
    wanted = 0
    for found, shown in zip(detections.astype(np.float64), labels.astype(np.float64), strict=True):
        tall = found[:, Y2] - found[:, Y1] >= least_height / _EXPANSION
        told = found[(found[:, SCORE] > 0) & (found[:, FOUND_CLASS] == number) & tall]
        told = told[np.argsort(-told[:, SCORE], kind="stable")]
        there = shown[(shown[:, KIND] != NOTHING) & (shown[:, CLASS] == number)]
        counts = (there[:, KIND] == OBJECT) & (there[:, VISIBLE] >= least_visible)
        counts &= there[:, Y2] - there[:, Y1] >= least_height
        wanted += int(counts.sum())
        judged += _matched(told, there[counts], there[~counts])
    if not wanted:
        return None
    judged.sort(key=lambda one: -one[0])
    hits = np.array([hit for _, hit in judged], dtype=bool)
    misses = np.concatenate([[1.0], 1 - hits.cumsum() / wanted])
    false = np.concatenate([[0.0], (~hits).cumsum() / len(labels)])
    at = np.searchsorted(false, _RATES, side="right") - 1
    return float(np.exp(np.log(np.maximum(misses[at], _LEAST_RATE)).mean()))


def _matched(
    told: NDArray[np.float64], objects: NDArray[np.float64], ignored: NDArray[np.float64]
) -> Iterator[tuple[float, bool]]:
    """Score of each detection of an image, best first, and whether it is a hit, without those that do not count."""
    common = _common(told, objects)
    overlap = common / np.maximum(areas(told)[:, None] + areas(objects)[None] - common, 1e-12)
    inside = _common(told, ignored) / np.maximum(areas(told), 1e-12)[:, None]
    for row, overlaps in enumerate(overlap):
        best = int(overlaps.argmax()) if overlaps.size else -1
        if best >= 0 and overlaps[best] >= _OVERLAP:
            overlap[:, best] = -1  # free no more
            yield float(told[row, SCORE]), True
        elif not (inside[row] >= _OVERLAP).any():
            yield float(told[row, SCORE]), False


def _common(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square pixels that boxes share, `[one, other]`."""
    width = np.minimum(one[:, None, X2], other[None, :, X2]) - np.maximum(one[:, None, X1], other[None, :, X1])
    height = np.minimum(one[:, None, Y2], other[None, :, Y2]) - np.maximum(one[:, None, Y1], other[None, :, Y1])
    shared: NDArray[np.float64] = np.maximum(width, 0) * np.maximum(height, 0)
    return shared
