"""Drawings made of strokes, persons above all, in whole numbers: the same bytes on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from search.datasets.canvas import Dice, Ints

_FINE = 3
"""Points a pixel has along each side, of which its colour is the mean."""
_STEPS = 16
"""Of a fine point; coordinates are whole numbers of them."""


@dataclass(frozen=True, slots=True)
class Stroke:
    """A line with round ends. Places and radius in thousandths of the drawing's height, `colour` a row of a palette."""

    start: tuple[float, float]
    end: tuple[float, float]
    radius: float
    colour: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """Colours `[3, h, w]`, and a mask `[h, w]` that covers at 256."""

    colours: Ints
    mask: Ints


def drawn(strokes: Sequence[Stroke], palette: NDArray[np.int64], height: int) -> Drawing:
    """Each stroke over those before it, in colours of `palette` `[k, 3]`; a thousand is `height` pixels."""
    scale = height * _FINE * _STEPS / 1000
    ends = np.rint(np.array([[*one.start, *one.end] for one in strokes]) * scale).astype(np.int64)
    radii = np.rint(np.array([one.radius for one in strokes]) * scale).astype(np.int64)
    low = np.minimum(ends[:, :2], ends[:, 2:]) - radii[:, None]
    high = np.maximum(ends[:, :2], ends[:, 2:]) + radii[:, None]
    pixel = _FINE * _STEPS
    origin = low.min(axis=0) // pixel * pixel
    columns, rows = (-((origin - high.max(axis=0)) // pixel)).tolist()
    fine = np.zeros((rows * _FINE, columns * _FINE), np.int64)
    for (x1, y1, x2, y2), radius, stroke, least, most in zip(ends, radii, strokes, low, high, strict=True):
        (left, top), (right, bottom) = (least - origin) // _STEPS, -((origin - most) // _STEPS)
        x = origin[0] + np.arange(left, right)[None] * _STEPS + _STEPS // 2
        y = origin[1] + np.arange(top, bottom)[:, None] * _STEPS + _STEPS // 2
        along = (x - x1) * (x2 - x1) + (y - y1) * (y2 - y1)
        across = (x - x1) * (y2 - y1) - (y - y1) * (x2 - x1)
        length = (x2 - x1) ** 2 + (y2 - y1) ** 2
        inside = (along >= 0) & (along < length) & (across**2 <= radius**2 * length)
        inside |= (x - x1) ** 2 + (y - y1) ** 2 <= radius**2
        inside |= (x - x2) ** 2 + (y - y2) ** 2 <= radius**2
        fine[top:bottom, left:right][inside] = stroke.colour + 1
    points = fine.reshape(rows, _FINE, columns, _FINE)
    count = (points > 0).sum(axis=(1, 3))
    paints = np.concatenate([np.zeros((1, 3), np.int64), palette])[points].sum(axis=(1, 3))
    colours = (paints // np.maximum(count, 1)[..., None]).transpose(2, 0, 1)
    return Drawing(colours.astype(np.int32), (count * 256 // _FINE**2).astype(np.int32))


_HAIR, _SKIN, _TOP, _LEGS, _SHOES, _BAG = range(6)
_SKINS = np.array([(236, 196, 168), (214, 164, 128), (176, 122, 84), (122, 80, 56), (84, 56, 42)])
_HAIRS = np.array([(28, 24, 24), (66, 46, 32), (120, 84, 46), (186, 150, 92), (150, 148, 146)])


def person(dice: Dice, top: NDArray[np.int64], legs: NDArray[np.int64]) -> tuple[list[Stroke], NDArray[np.int64]]:
    """
    Someone standing or walking, seen from the front, the back or a side, with strokes and palette for `drawn`.

    `top` and `legs` `[3]` are the colours of the clothes; pose, build, hair, coat and bag are drawn by lot.
    """
    view, bag = dice.below(4, 1)[0], dice.below(4, 1)[0] == 0
    build, stride, bend, lift, lean = dice.between(0, 1, 5).tolist()
    build, stride, lean = 0.85 + 0.4 * build, 0.12 + 0.4 * stride, 40 * (lean - 0.5)
    coat, sleeves = (dice.below(4, 2) == 0).tolist()
    side = {0: -1, 1: 1}.get(int(view), 0)  # to which it walks; 0 for front and back
    hips, shoulders, neck = (0.0, 500.0), (lean + side * 12, 232.0), (lean + side * 22, 165.0)
    spread = 0.0 if side else 1.0
    strokes: list[Stroke] = []

    def limb(
        start: tuple[float, float], angles: Sequence[float], lengths: Sequence[float]
    ) -> list[tuple[float, float]]:
        places = [start]
        for angle, length in zip(angles, lengths, strict=True):
            x, y = places[-1]
            places.append((x + length * float(np.sin(angle)), y + length * float(np.cos(angle))))
        return places

    def arm(hand: int) -> None:
        swing = side * hand * stride if side else hand * (0.12 + 0.5 * lift * (hand > 0))
        turn = side * (0.2 + 0.6 * bend) if side else -hand * 0.3 * bend
        shoulder = (shoulders[0] + spread * hand * 88 * build, shoulders[1] + 12)
        _, elbow, wrist = limb(shoulder, (swing, swing + turn), (150, 140))
        strokes.append(Stroke(elbow, wrist, 25, _TOP if sleeves else _SKIN))
        strokes.append(Stroke(shoulder, elbow, 35 * build, _TOP))
        strokes.append(Stroke(wrist, wrist, 30, _SKIN))
        if bag and hand > 0:
            strokes.append(Stroke((wrist[0] - 25, wrist[1] + 80), (wrist[0] + 25, wrist[1] + 80), 48, _BAG))

    def leg(foot: int) -> None:
        angle = side * foot * stride if side else foot * 0.25 * stride
        fold = -side * (0.1 + 0.7 * bend) if side and foot < 0 else 0.0
        hip = (hips[0] + spread * foot * 44 * build, hips[1])
        _, knee, ankle = limb(hip, (angle, angle + fold), (225, 225))
        strokes.append(Stroke(hip, knee, 56 * build, _LEGS))
        strokes.append(Stroke(knee, ankle, 40 * build, _LEGS))
        toe = (ankle[0] + (side * 55 if side else foot * 15), ankle[1] + 16)
        strokes.append(Stroke((ankle[0], ankle[1] + 16), toe, 29, _SHOES))

    arm(-1)
    leg(-1)
    leg(1)
    wide = spread * 42 * build
    strokes.append(
        Stroke((shoulders[0] - wide, shoulders[1] + 20), (shoulders[0] + wide, shoulders[1] + 20), 68 * build, _TOP)
    )
    strokes.append(Stroke((shoulders[0], 270), (hips[0], 620 if coat else 480), 86 * build, _TOP))
    strokes.append(Stroke(neck, (shoulders[0], 200), 32, _SKIN))
    head = (neck[0] + side * 4, 78.0)
    strokes.append(Stroke(head, (head[0], head[1] + 12), 74, _HAIR))
    if view != 3:  # from behind there is only hair
        strokes.append(Stroke((head[0] + side * 22, head[1] + 16), (head[0] + side * 24, head[1] + 34), 56, _SKIN))
    arm(1)
    shades = dice.between(0, 90, 2, 3).astype(np.int64)
    skin, hair = _SKINS[dice.below(5, 1)[0]], _HAIRS[dice.below(5, 1)[0]]
    return strokes, np.stack([hair, skin, top, legs, shades[0], shades[1] + 60])
