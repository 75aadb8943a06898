"""
Labels of detection: one array for all images, so that they are indexed by image as labels of classification are.

`[n, most, 7]` float32, in each row, by the names below: the box in pixels (x to the right, y down; `X2` and `Y2` are
edges, the first column and row outside), the class, the kind of the row, and which share of the object is visible. An
image with fewer than `most` rows ends in rows of zeros, whose kind is `NOTHING`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Boxes = NDArray[np.float32]

X1, Y1, X2, Y2, CLASS, KIND, VISIBLE = range(7)
COLUMNS = 7
BOX = slice(X1, Y2 + 1)
NOTHING, OBJECT, IGNORED = 0, 1, 2
"""Of `KIND`: an empty row, an object to be found, a region in which neither finding nor missing counts."""
LEAST_LEFT = 0.3
"""Share of a box that has to stay in the picture for it to stay an object; of less than this nobody could say what."""


def packed(images: Sequence[ArrayLike]) -> Boxes:
    """The rows of each image, `[k, 7]` or none, as one array; `most` is the largest k, and 1 where all are empty."""
    rows = [np.asarray(image, np.float32).reshape(-1, COLUMNS) for image in images]
    labels = np.zeros((len(rows), max([1, *map(len, rows)]), COLUMNS), np.float32)
    for label, row in zip(labels, rows, strict=True):
        label[: len(row)] = row
    return labels


def areas(boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    """Of boxes `[..., >= 4]`, in square pixels; 0 of one that is turned inside out."""
    sides = np.maximum(boxes[..., [X2, Y2]] - boxes[..., [X1, Y1]], 0)
    product: NDArray[np.floating] = sides[..., 0] * sides[..., 1]
    return product


def mirrored(labels: Boxes, size: int) -> Boxes:
    """The labels `[..., 7]` of pictures `size` pixels wide whose left is turned to the right."""
    found = labels.copy()
    found[..., X1], found[..., X2] = size - labels[..., X2], size - labels[..., X1]
    return _cleared(found)


def shifted(labels: Boxes, rows: NDArray[np.int64], columns: NDArray[np.int64], size: int) -> Boxes:
    """
    Labels `[n, most, 7]` of pictures moved by `rows` down and `columns` to the right, each `[n]`, and cut to `size`.

    What leaves the picture is cut from boxes and from visible shares. An object of which less than `LEAST_LEFT` stays
    becomes a region to be ignored; a row of which nothing stays is emptied, wherever it stands.
    """
    found = labels.copy()
    found[..., [X1, X2]] += columns[:, None, None].astype(np.float32)
    found[..., [Y1, Y2]] += rows[:, None, None].astype(np.float32)
    found[..., BOX] = found[..., BOX].clip(0, size)
    before, after = areas(labels), areas(found)
    left = np.divide(after, before, out=np.zeros_like(after), where=before > 0)
    found[..., VISIBLE] *= left
    found[..., KIND][(found[..., KIND] == OBJECT) & (left < LEAST_LEFT)] = IGNORED
    found[..., KIND][after <= 0] = NOTHING
    return _cleared(found)


def _cleared(labels: Boxes) -> Boxes:
    labels[labels[..., KIND] == NOTHING] = 0
    return labels
