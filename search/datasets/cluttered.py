"""Real digits, warped, over textured clutter: small enough for a laptop, hard enough that capacity shows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from search.datasets.arrays import SPLITS, check_memory, kept_split
from search.datasets.digits import CLASSES, originals, sources
from search.files import Files
from search.part import Part
from search.plugins import DatasetInfo, Split, SplitName

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

_SIZE = 32
_SOURCE = 36
_MARGIN = 2
"""Black pixels around a source, so that what lies outside it needs no test."""
_BATCH = 250


class ClutteredDigits:
    """
    Real digits scaled, shifted, rotated and sheared, in a contrasting colour over noise, a grating and cut-off digits.

    RGB images of 32x32, composed from scikit-learn's 1,797 digits. The splits are made by source: no digit of one
    split appears in another, neither as the digit to be read nor as clutter. The same options give the same bytes on
    every machine, because pixels are computed in whole numbers.
    """

    class Options(Part):
        train: int = Field(8000, ge=10, le=1_000_000)
        """Images for training."""
        validation: int = Field(2000, ge=10, le=1_000_000)
        """Images for validation."""
        test: int = Field(3000, ge=10, le=1_000_000)
        """Images for the test."""
        seed: int = Field(0, ge=0, lt=2**32)
        """Another seed, other images (of the same source digits)."""

    def __init__(self, options: Options, files: Files) -> None:
        self._options = options
        self._cache = files.cache

    def info(self) -> DatasetInfo:
        sizes = self._options
        return DatasetInfo(
            key=f"cluttered_digits-2-{sizes.train}-{sizes.validation}-{sizes.test}-{sizes.seed}",
            classes=CLASSES,
            channels=3,
            size=_SIZE,
            mean=(0.49,) * 3,
            std=(0.21,) * 3,
            mirror=False,
            pad=2,
        )

    def sizes(self) -> Mapping[SplitName, int]:
        sizes = self._options
        return {"train": sizes.train, "validation": sizes.validation, "test": sizes.test}

    def split(self, name: SplitName) -> Split:
        sizes = self._options
        check_memory(sizes.train + sizes.validation + sizes.test, 3, _SIZE)
        return kept_split(self._cache, self.info().key, name, self._build)

    def _build(self) -> Mapping[SplitName, Split]:
        sizes = self._options.model_dump()
        return {name: compose(sources(name), sizes[name], f"{self._options.seed} {name}") for name in SPLITS}


def compose(pool: NDArray[np.int64], count: int, seed: str) -> Split:
    """`count` images whose digits, and the clutter around them, all come from the sources in `pool`."""
    dice = _Dice(seed)
    digits, labels = originals(_SOURCE)
    images = np.empty((count, 3, _SIZE, _SIZE), np.uint8)
    chosen = np.empty(count, np.int64)
    for start in range(0, count, _BATCH):
        batch = slice(start, min(start + _BATCH, count))
        n = batch.stop - batch.start
        # every source is used equally often, in turn
        chosen[batch] = pool[np.arange(batch.start, batch.stop) % len(pool)]
        images[batch] = _compose(dice, digits, chosen[batch], pool, n)
    return Split(images, labels[chosen])


def _compose(
    dice: _Dice, digits: NDArray[np.uint8], chosen: NDArray[np.int64], pool: NDArray[np.int64], n: int
) -> NDArray[np.uint8]:
    """One batch, `[n, 3, 32, 32]`: background, clutter, the digit, and noise over all."""
    base = dice.between(70, 186, n, 3).astype(np.int32)
    canvas = base[:, :, None, None] + _texture(dice, n) + _grating(dice, n)
    for index in range(4):
        mask = _warp(
            digits[pool[dice.below(len(pool), n)]],
            scale=dice.between(0.4, 0.75, n),
            angle=dice.between(-np.pi, np.pi, n),
            shear=dice.between(-0.3, 0.3, n),
            shift=dice.between(-13, 13, n, 2),
        )
        mask *= _half_plane(dice, n)
        if index == 3:
            mask *= (dice.below(2, n) == 0)[:, None, None]  # three or four pieces
        canvas = _paint(canvas, mask, _contrasting(dice, base, 25, 90))
    mask = _warp(
        digits[chosen],
        scale=dice.between(0.55, 0.92, n),
        angle=dice.between(-np.deg2rad(26), np.deg2rad(26), n),
        shear=dice.between(-0.25, 0.25, n),
        shift=dice.between(-3, 3, n, 2),
    )
    canvas = _paint(canvas, mask, _contrasting(dice, base, 68, 140))
    canvas += _noise(dice, n)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _warp(digits: NDArray[np.uint8], *, scale: Floats, angle: Floats, shear: Floats, shift: Floats) -> Ints:
    """
    Masks `[n, 32, 32]` from 0 to 256: each digit scaled, sheared, rotated and moved by `shift` pixels.

    For each pixel the place in the source is found in 1/256 pixels and read by bilinear interpolation.
    """
    n = len(digits)
    padded = np.pad(digits, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN))).astype(np.int32)
    side = _SOURCE + 2 * _MARGIN
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    # inverse of rotate(shear(scale(p))), in 1/256; rounding here hides how far sin and cos of two machines differ
    rows = np.stack([cos + shear * sin, sin - shear * cos, -sin, cos], axis=1)
    a, b, c, d = np.rint(rows * 256).astype(np.int32).T[:, :, None, None]
    grid = 2 * np.arange(_SIZE, dtype=np.int32) - (_SIZE - 1)  # twice the distance from the centre
    move = np.rint(shift * 2).astype(np.int32)
    x = grid[None, None, :] - move[:, 0, None, None]
    y = grid[None, :, None] - move[:, 1, None, None]
    centre = 128 * (side - 1)
    u = np.clip(((a * x + b * y) >> 1) + centre, 0, 256 * (side - 1) - 1)
    v = np.clip(((c * x + d * y) >> 1) + centre, 0, 256 * (side - 1) - 1)
    column, right = u >> 8, u & 255
    row, down = v >> 8, v & 255
    flat = padded.reshape(-1)
    at = (np.arange(n, dtype=np.int32) * side * side)[:, None, None] + row * side + column
    upper = flat[at] * (256 - right) + flat[at + 1] * right
    lower = flat[at + side] * (256 - right) + flat[at + side + 1] * right
    value: Ints = (upper * (256 - down) + lower * down) >> 16
    return value + (value >> 7)  # 255 becomes 256, so that a full mask covers


def _half_plane(dice: _Dice, n: int) -> Ints:
    """Masks `[n, 32, 32]` of 0 and 1: one side of a line through a point near the centre."""
    angle = dice.between(-np.pi, np.pi, n)
    normal = np.rint(np.stack([np.cos(angle), np.sin(angle)], axis=1) * 256).astype(np.int32)
    point = dice.between(4, 28, n, 2).astype(np.int32)
    grid = np.arange(_SIZE, dtype=np.int32)
    x = grid[None, None, :] - point[:, 0, None, None]
    y = grid[None, :, None] - point[:, 1, None, None]
    side: Ints = (normal[:, 0, None, None] * x + normal[:, 1, None, None] * y > 0).astype(np.int32)
    return side


def _contrasting(dice: _Dice, base: Ints, least: int, most: int) -> Ints:
    """Colours `[n, 3]` lighter or darker than `base` by `least` to `most`, a little different in each channel."""
    n = len(base)
    contrast = dice.between(least, most, n, 1) + dice.between(-20, 20, n, 3)
    lighter = base.mean(axis=1, keepdims=True) + dice.between(-60, 60, n, 1) < 128
    colour = np.where(lighter, base + contrast, base - contrast)
    return np.clip(np.rint(colour), 0, 255).astype(np.int32)


def _paint(canvas: Ints, mask: Ints, colour: Ints) -> Ints:
    painted: Ints = canvas + (((colour[:, :, None, None] - canvas) * mask[:, None]) >> 8)
    return painted


def _texture(dice: _Dice, n: int) -> Ints:
    """Smooth noise `[n, 3, 32, 32]` around 0, summed over grids of 2, 4, 8 and 16 cells."""
    total = np.zeros((n, 3, _SIZE, _SIZE), np.int32)
    for cells, most in ((2, 44), (4, 35), (8, 27), (16, 20)):
        weights = _interpolation(cells)
        nodes = dice.bytes(n, 3, cells + 1, cells + 1).astype(np.float32) - 128
        # every partial sum is a whole number below 2**24, exact in float32 in whatever order it is added
        smooth = (weights @ nodes @ weights.T).astype(np.int32) >> 12
        total += (smooth * dice.between(most / 4, most, n).astype(np.int32)[:, None, None, None]) >> 7
    return total


def _interpolation(cells: int) -> NDArray[np.float32]:
    """`[32, cells + 1]`: weights in 1/64 of the two nodes nearest to each pixel."""
    place = (2 * np.arange(_SIZE) + 1) * cells
    weights = np.zeros((_SIZE, cells + 1), np.float32)
    weights[np.arange(_SIZE), place >> 6] = 64 - (place & 63)
    weights[np.arange(_SIZE), (place >> 6) + 1] += place & 63
    return weights


_WAVE = np.rint(np.sin(np.arange(1024) * (2 * np.pi / 1024)) * 256).astype(np.int32)


def _grating(dice: _Dice, n: int) -> Ints:
    """Stripes `[n, 3, 32, 32]` of 3 to 12 pixels a period in any direction, up to 20 levels strong."""
    angle, period = dice.between(0, 2 * np.pi, n), dice.between(3, 12, n)
    step = np.rint(np.stack([np.cos(angle), np.sin(angle)], axis=1) / period[:, None] * 1024).astype(np.int32)
    grid = np.arange(_SIZE, dtype=np.int32)
    phase = step[:, 0, None, None] * grid[None, None, :] + step[:, 1, None, None] * grid[None, :, None]
    wave = _WAVE[(phase + dice.below(1024, n).astype(np.int32)[:, None, None]) & 1023]
    strength = dice.between(-20, 20, n, 3).astype(np.int32)
    stripes: Ints = (wave[:, None] * strength[:, :, None, None]) >> 8
    return stripes


def _noise(dice: _Dice, n: int) -> Ints:
    """Noise `[n, 3, 32, 32]` with a standard deviation of .03 to .10 of the scale: the sum of four uniform bytes."""
    total = dice.bytes(4, n, 3, _SIZE, _SIZE).sum(axis=0, dtype=np.int32) - 510
    deviation = 147.8  # of the sum of four bytes: sqrt(4 * (256**2 - 1) / 12)
    strength = np.rint(dice.between(0.03, 0.10, n) * (255 / deviation * 4096)).astype(np.int32)
    noise: Ints = (total * strength[:, None, None, None]) >> 12
    return noise


class _Dice:
    """Numbers drawn from the raw stream of PCG64, which numpy promises to keep, unlike its distributions (NEP 19)."""

    def __init__(self, seed: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(seed.encode()).digest()))

    def between(self, low: float, high: float, *shape: int) -> Floats:
        raw = self._bits.random_raw(int(np.prod(shape))) >> np.uint64(11)
        return low + (high - low) * (raw.astype(np.float64) * 2.0**-53).reshape(shape)

    def below(self, limit: int, n: int) -> NDArray[np.int64]:
        return np.floor(self.between(0, limit, n)).astype(np.int64)

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        count = int(np.prod(shape))
        raw = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)
