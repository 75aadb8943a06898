"""What composed images are painted with, in whole numbers: the same seed gives the same bytes on every machine."""

from __future__ import annotations

import hashlib
from math import prod

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

SIZE = 32
"""Height and width of what is painted where nothing else is said."""
_MARGIN = 2
"""Black pixels around a source, so that what lies outside it needs no test."""


class Dice:
    """Numbers drawn from the raw stream of PCG64, which numpy promises to keep, unlike its distributions (NEP 19)."""

    def __init__(self, seed: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(seed.encode()).digest()))

    def between(self, low: float, high: float, *shape: int) -> Floats:
        raw = self._bits.random_raw(prod(shape)) >> np.uint64(11)
        return low + (high - low) * (raw.astype(np.float64) * 2.0**-53).reshape(shape)

    def below(self, limit: int, n: int) -> NDArray[np.int64]:
        return np.floor(self.between(0, limit, n)).astype(np.int64)

    def bytes(self, *shape: int) -> NDArray[np.uint8]:
        count = prod(shape)
        raw = self._bits.random_raw(-(-count // 8)).astype("<u8")
        return raw.view(np.uint8)[:count].reshape(shape)


def warp(
    sources: NDArray[np.uint8], *, scale: Floats, angle: Floats, shear: Floats, shift: Floats, size: int = SIZE
) -> Ints:
    """
    Masks `[n, size, size]` from 0 to 256: each source `[side, side]` scaled, sheared, rotated and moved by `shift`.

    Shifts are in pixels. For each pixel the place in the source is found in 1/256 pixels, and what is there is read by
    bilinear interpolation.
    """
    n = len(sources)
    padded = np.pad(sources, ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN))).astype(np.int32)
    side = padded.shape[-1]
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    # inverse of rotate(shear(scale(p))), in 1/256; rounding here hides how far sin and cos of two machines differ
    rows = np.stack([cos + shear * sin, sin - shear * cos, -sin, cos], axis=1)
    a, b, c, d = np.rint(rows * 256).astype(np.int32).T[:, :, None, None]
    grid = 2 * np.arange(size, dtype=np.int32) - (size - 1)  # twice the distance from the centre
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


def half_plane(dice: Dice, n: int) -> Ints:
    """Masks `[n, 32, 32]` of 0 and 1: one side of a line through a point near the centre."""
    angle = dice.between(-np.pi, np.pi, n)
    normal = np.rint(np.stack([np.cos(angle), np.sin(angle)], axis=1) * 256).astype(np.int32)
    point = dice.between(4, 28, n, 2).astype(np.int32)
    grid = np.arange(SIZE, dtype=np.int32)
    x = grid[None, None, :] - point[:, 0, None, None]
    y = grid[None, :, None] - point[:, 1, None, None]
    side: Ints = (normal[:, 0, None, None] * x + normal[:, 1, None, None] * y > 0).astype(np.int32)
    return side


def contrasting(dice: Dice, base: Ints, least: int, most: int) -> Ints:
    """Colours `[n, 3]` lighter or darker than `base` by `least` to `most`, a little different in each channel."""
    n = len(base)
    contrast = dice.between(least, most, n, 1) + dice.between(-20, 20, n, 3)
    lighter = base.mean(axis=1, keepdims=True) + dice.between(-60, 60, n, 1) < 128
    colour = np.where(lighter, base + contrast, base - contrast)
    return np.clip(np.rint(colour), 0, 255).astype(np.int32)


def paint(canvas: Ints, mask: Ints, colour: Ints) -> Ints:
    """`colour`, `[n, 3]` or one for every pixel, laid over by `mask` `[n, size, size]`, which covers at 256."""
    paints = colour[:, :, None, None] if colour.ndim == 2 else colour
    painted: Ints = canvas + (((paints - canvas) * mask[:, None]) >> 8)
    return painted


def background(dice: Dice, base: Ints, size: int = SIZE) -> Ints:
    """Smooth noise and a grating over the colours `base` `[n, 3]`, as `[n, 3, size, size]`."""
    n = len(base)
    canvas: Ints = base[:, :, None, None] + _smooth(dice, n, size) + _grating(dice, n, size)
    return canvas


def _smooth(dice: Dice, n: int, size: int) -> Ints:
    """Smooth noise `[n, 3, size, size]` around 0, summed over grids of 2, 4, 8 and 16 cells."""
    total = np.zeros((n, 3, size, size), np.int32)
    for cells, most in ((2, 44), (4, 35), (8, 27), (16, 20)):
        weights = _interpolation(cells, size)
        nodes = dice.bytes(n, 3, cells + 1, cells + 1).astype(np.float32) - 128
        # every partial sum is a whole number below 2**24, exact in float32 in whatever order it is added
        smooth = (weights @ nodes @ weights.T).astype(np.int32) >> 12
        total += (smooth * dice.between(most / 4, most, n).astype(np.int32)[:, None, None, None]) >> 7
    return total


def _interpolation(cells: int, size: int) -> NDArray[np.float32]:
    """`[size, cells + 1]`: weights in 1/64 of the two nodes nearest to each pixel."""
    node, past = np.divmod((2 * np.arange(size) + 1) * cells, 2 * size)
    share = 64 * past // (2 * size)
    weights = np.zeros((size, cells + 1), np.float32)
    weights[np.arange(size), node] = 64 - share
    weights[np.arange(size), node + 1] += share
    return weights


_WAVE = np.rint(np.sin(np.arange(1024) * (2 * np.pi / 1024)) * 256).astype(np.int32)


def _grating(dice: Dice, n: int, size: int) -> Ints:
    """Stripes `[n, 3, size, size]` of 3 to 12 pixels a period in any direction, up to 20 levels strong."""
    stripes = wave(dice, dice.between(0, 2 * np.pi, n), dice.between(3, 12, n), size)
    strength = dice.between(-20, 20, n, 3).astype(np.int32)
    grating: Ints = (stripes[:, None] * strength[:, :, None, None]) >> 8
    return grating


def wave(dice: Dice, angle: Floats, period: Floats, size: int = SIZE) -> Ints:
    """Stripes `[n, size, size]` from -256 to 256 across `angle`, of `period` pixels and with any phase."""
    step = np.rint(np.stack([np.cos(angle), np.sin(angle)], axis=1) / period[:, None] * 1024).astype(np.int32)
    grid = np.arange(size, dtype=np.int32)
    phase = step[:, 0, None, None] * grid[None, None, :] + step[:, 1, None, None] * grid[None, :, None]
    waves: Ints = _WAVE[(phase + dice.below(1024, len(angle)).astype(np.int32)[:, None, None]) & 1023]
    return waves


def developed(dice: Dice, canvas: Ints) -> NDArray[np.uint8]:
    """The canvas as an image, with noise over all."""
    image: NDArray[np.uint8] = np.clip(canvas + _noise(dice, len(canvas), canvas.shape[-1]), 0, 255).astype(np.uint8)
    return image


def _noise(dice: Dice, n: int, size: int) -> Ints:
    """Noise `[n, 3, size, size]`, its deviation .03 to .10 of the scale: the sum of four uniform bytes."""
    total = dice.bytes(4, n, 3, size, size).sum(axis=0, dtype=np.int32) - 510
    deviation = 147.8  # of the sum of four bytes: sqrt(4 * (256**2 - 1) / 12)
    strength = np.rint(dice.between(0.03, 0.10, n) * (255 / deviation * 4096)).astype(np.int32)
    noise: Ints = (total * strength[:, None, None, None]) >> 12
    return noise
