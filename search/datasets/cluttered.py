"""Real digits, warped, over textured clutter: small enough for a laptop, hard enough that capacity shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from search.datasets.canvas import SIZE, Dice, background, contrasting, developed, half_plane, paint, warp
from search.datasets.composed import Composed
from search.datasets.digits import CLASSES, originals, sources
from search.plugins import DatasetInfo, Split, SplitName

_SOURCE = 36
_BATCH = 250


class ClutteredDigits(Composed):
    """
    Real digits scaled, shifted, rotated and sheared, in a contrasting colour over noise, a grating and cut-off digits.

    RGB images of 32x32, composed from scikit-learn's 1,797 digits. The splits are made by source: no digit of one
    split appears in another, neither as the digit to be read nor as clutter; another seed makes other images of the
    same digits. The same options give the same bytes on every machine, because pixels are computed in whole numbers.
    """

    def info(self) -> DatasetInfo:
        return DatasetInfo(
            key=self.key("cluttered_digits", 2),
            classes=CLASSES,
            channels=3,
            size=SIZE,
            mean=(0.49,) * 3,
            std=(0.21,) * 3,
            mirror=False,
            pad=2,
        )

    def compose(self, name: SplitName, count: int, seed: str) -> Split:
        return compose(sources(name), count, seed)

    def labels(self, name: SplitName, count: int) -> NDArray[np.int64]:
        return originals(_SOURCE)[1][_in_turn(sources(name), count)]


def compose(pool: NDArray[np.int64], count: int, seed: str) -> Split:
    """`count` images whose digits, and the clutter around them, all come from the sources in `pool`."""
    dice = Dice(seed)
    digits, labels = originals(_SOURCE)
    images = np.empty((count, 3, SIZE, SIZE), np.uint8)
    chosen = _in_turn(pool, count)
    for start in range(0, count, _BATCH):
        batch = slice(start, min(start + _BATCH, count))
        images[batch] = _compose(dice, digits, chosen[batch], pool)
    return Split(images, labels[chosen])


def _in_turn(pool: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Every source is used equally often."""
    return pool[np.arange(count) % len(pool)]


def _compose(
    dice: Dice, digits: NDArray[np.uint8], chosen: NDArray[np.int64], pool: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """One batch, `[n, 3, 32, 32]`: background, clutter, the digit, and noise over all."""
    n = len(chosen)
    base = dice.between(70, 186, n, 3).astype(np.int32)
    canvas = background(dice, base)
    for index in range(4):
        mask = warp(
            digits[pool[dice.below(len(pool), n)]],
            scale=dice.between(0.4, 0.75, n),
            angle=dice.between(-np.pi, np.pi, n),
            shear=dice.between(-0.3, 0.3, n),
            shift=dice.between(-13, 13, n, 2),
        )
        mask *= half_plane(dice, n)
        if index == 3:
            mask *= (dice.below(2, n) == 0)[:, None, None]  # three or four pieces
        canvas = paint(canvas, mask, contrasting(dice, base, 25, 90))
    mask = warp(
        digits[chosen],
        scale=dice.between(0.55, 0.92, n),
        angle=dice.between(-np.deg2rad(26), np.deg2rad(26), n),
        shear=dice.between(-0.25, 0.25, n),
        shift=dice.between(-3, 3, n, 2),
    )
    return developed(dice, paint(canvas, mask, contrasting(dice, base, 68, 140)))
