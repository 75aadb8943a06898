"""Drawn shapes with textures, over the clutter of `cluttered_digits`: another thing to see than digits."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from search.datasets.canvas import SIZE, Dice, Ints, background, contrasting, developed, paint, warp, wave
from search.datasets.composed import Composed
from search.plugins import DatasetInfo, Split, SplitName

SHAPES = ("disc", "square", "triangle", "star", "cross")
TEXTURES = ("plain", "striped", "checked", "dotted")

_SOURCE = 36
_FINE = 8
"""Points a pixel of a source has along each side, of which its grey is the mean."""
_BATCH = 250
_DISTRACTORS = 4


class Shapes(Composed):
    """
    A disc, square, triangle, star or cross, plain, striped, checked or dotted: 20 classes, over noise and a grating.

    RGB images of 32x32 with small plain shapes as distractors: the large one counts. The same options give the same
    bytes on every machine, because pixels are computed in whole numbers.
    """

    def info(self) -> DatasetInfo:
        return DatasetInfo(
            key=self.key("shapes", 1),
            classes=tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES),
            channels=3,
            size=SIZE,
            mean=(0.49,) * 3,
            std=(0.213,) * 3,
            mirror=True,
            pad=2,
        )

    def compose(self, name: SplitName, count: int, seed: str) -> Split:
        dice, labels = Dice(seed), self.labels(name, count)
        images = [_compose(dice, labels[start : start + _BATCH]) for start in range(0, count, _BATCH)]
        return Split(np.concatenate(images), labels)

    def labels(self, name: SplitName, count: int) -> NDArray[np.int64]:
        return np.arange(count) % (len(SHAPES) * len(TEXTURES))


def _compose(dice: Dice, labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """One batch, `[n, 3, 32, 32]`: background, distractors, the shape with its texture, and noise over all."""
    n = len(labels)
    base = dice.between(70, 186, n, 3).astype(np.int32)
    canvas = background(dice, base)
    for _ in range(_DISTRACTORS):
        mask = _placed(dice, dice.below(len(SHAPES), n), (0.14, 0.26), 14)
        canvas = paint(canvas, mask, contrasting(dice, base, 25, 100))
    first, second = contrasting(dice, base, 85, 150), contrasting(dice, base, 25, 55)
    mask = _placed(dice, labels // len(TEXTURES), (0.5, 0.8), 4)
    return developed(dice, paint(canvas, mask, _textured(dice, labels % len(TEXTURES), first, second)))


def _placed(dice: Dice, shapes: NDArray[np.int64], scales: tuple[float, float], reach: float) -> Ints:
    """Masks `[n, 32, 32]` of the shapes, turned, sheared, scaled, and at most `reach` pixels off the middle."""
    n = len(shapes)
    return warp(
        stencils()[shapes],
        scale=dice.between(*scales, n),
        angle=dice.between(-np.pi, np.pi, n),
        shear=dice.between(-0.2, 0.2, n),
        shift=dice.between(-reach, reach, n, 2),
    )


def _textured(dice: Dice, textures: NDArray[np.int64], first: Ints, second: Ints) -> Ints:
    """Colours `[n, 3, 32, 32]` between two, each `[n, 3]`, in patterns of 4 to 8 pixels a period, turned at random."""
    n = len(textures)
    angle, period = dice.between(0, 2 * np.pi, n), dice.between(4, 8, n)
    along, across = wave(dice, angle, period), wave(dice, angle + np.pi / 2, period)
    patterns = (np.full_like(along, 256), along, (along * across) >> 7, along + across - 200)
    pattern = np.choose(textures[:, None, None], patterns)
    share = np.clip(128 + pattern, 0, 256)[:, None]
    colours: Ints = second[:, :, None, None] + (((first - second)[:, :, None, None] * share) >> 8)
    return colours


@cache
def stencils() -> NDArray[np.uint8]:
    """The shapes `[5, 36, 36]`, white on black."""
    grid = 2 * np.arange(_SOURCE * _FINE) - (_SOURCE * _FINE - 1)  # twice the distance from the centre
    x, y = grid[None, :], grid[:, None]
    size = _SOURCE * _FINE
    disc = x * x + y * y <= (82 * size // 100) ** 2
    square = np.maximum(abs(x), abs(y)) <= 72 * size // 100
    triangle = _sides(x, y, 3).min(axis=0) >= -49 * size * 1024 // 100
    star = (_sides(x, y, 5) >= -33 * size * 1024 // 100).sum(axis=0) >= 4  # a pentagram: outside of one side at most
    arm, reach = 27 * size // 100, 92 * size // 100
    cross = (np.minimum(abs(x), abs(y)) <= arm) & (np.maximum(abs(x), abs(y)) <= reach)
    fine = np.stack([disc, square, triangle, star, cross]).reshape(-1, _SOURCE, _FINE, _SOURCE, _FINE)
    masks: NDArray[np.uint8] = (fine.sum(axis=(2, 4)) * 255 // _FINE**2).astype(np.uint8)
    return masks


def _sides(x: NDArray[np.int64], y: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`[count, h, w]`: how far each point lies towards the middle from lines through it, in 1/1024."""
    angles = np.arange(count) * (2 * np.pi / count) + np.pi / 2
    normals = np.rint(np.stack([np.cos(angles), np.sin(angles)]) * 1024).astype(np.int64)
    inwards: NDArray[np.int64] = -(normals[0][:, None, None] * x + normals[1][:, None, None] * y)
    return inwards
