"""Persons and real digits among clutter: detection that needs no download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from search.boxes import IGNORED, NOTHING, OBJECT, packed
from search.datasets.canvas import Dice, Ints, background, contrasting, developed, warp
from search.datasets.composed import Painted
from search.datasets.digits import CLASSES, originals, sources
from search.datasets.figures import Drawing, Stroke, drawn, person
from search.plugins import DatasetInfo, Split, SplitName

_SOURCE = 36
_BATCH = 50
_FEW = np.array([0, 1, 1, 2, 2, 2, 3, 3, 4, 5])
"""Objects of an image, each as likely: one image in ten is empty."""
_LEAST_SEEN = 0.2
"""Share of an object that has to be visible for it to be looked for."""
_TRIES = 12
_WIDEST = 0.5
"""Share of the smaller box that two boxes have in common at most, where another place can be found."""

_Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Placed:
    """A drawing whose upper left corner is at `left`, `top`; of the kind `NOTHING` when it only covers others."""

    drawing: Drawing
    left: int
    top: int
    label: int = 0
    kind: int = NOTHING

    @property
    def box(self) -> _Box:
        height, width = self.drawing.mask.shape
        return (self.left, self.top, self.left + width, self.top + height)


class Scenes(Painted):
    """
    Drawn pedestrians and real digits, up to five in an image, some hidden in part, over posts, signs and other clutter.

    RGB images with boxes, for detection. One image in ten is empty, one in ten has a crowd that is to be ignored. Boxes
    go round the whole object, and which share of it is visible is known exactly; of an object hidden by more than four
    fifths nothing is asked. The digits are scikit-learn's; no digit of one split appears in another. The same options
    give the same bytes on every machine, because pixels are computed in whole numbers.
    """

    class Options(Painted.Options):
        train: int = Field(2000, ge=10, le=1_000_000)
        """Images for training."""
        validation: int = Field(300, ge=10, le=1_000_000)
        """Images for validation."""
        test: int = Field(500, ge=10, le=1_000_000)
        """Images for the test."""
        size: int = Field(96, ge=64, le=512)
        """Height and width in pixels; objects grow with it."""
        digits: Literal["one", "ten", "none"] = "one"
        """How many classes digits are beside `pedestrian`; with `none` they are clutter."""

    options: Options

    def info(self) -> DatasetInfo:
        options = self.options
        classes = {"one": ("digit",), "ten": CLASSES, "none": ()}[options.digits]
        return DatasetInfo(
            key=f"{self.key('scenes', 1)}-{options.size}-{options.digits}",
            classes=("pedestrian", *classes),
            channels=3,
            size=options.size,
            mean=(0.49,) * 3,
            std=(0.186,) * 3,
            mirror=options.digits != "ten",
            pad=options.size // 16,
            task="detection",
            least_height=options.size / 5,
        )

    def compose(self, name: SplitName, count: int, seed: str) -> Split:
        dice, pool, size = Dice(seed), sources(name), self.options.size
        images = np.empty((count, 3, size, size), np.uint8)
        labels: list[NDArray[np.float32]] = []
        for start in range(0, count, _BATCH):
            n = min(_BATCH, count - start)
            base = dice.between(70, 186, n, 3).astype(np.int32)
            canvas = background(dice, base, size)
            labels += [Scene(dice, canvas[at], base[at], pool, self.options.digits).painted() for at in range(n)]
            images[start : start + n] = developed(dice, canvas)
        return Split(images, packed(labels))


class Scene:
    """One image while it is painted, on `canvas` `[3, size, size]`, whose mean colour is `base` `[3]`."""

    def __init__(self, dice: Dice, canvas: Ints, base: Ints, pool: NDArray[np.int64], digits: str) -> None:
        self._dice = dice
        self._canvas = canvas
        self._base = base[None]
        self._pool = pool
        self._digits = digits
        self._size = canvas.shape[-1]
        self._placed: list[Placed] = []

    def painted(self) -> NDArray[np.float32]:
        """The rows of its labels."""
        self._clutter()
        crowd = self._crowd() if self._chance(10) else None
        for _ in range(int(_FEW[self._below(len(_FEW))])):
            if self._below(5) < 3:
                self._place(self._person(self._between(0.18, 0.6)), 0)
            elif self._digits == "none":
                self._place(self._digit(self._below(len(self._pool))), 0, NOTHING)
            else:
                which = self._below(len(self._pool))
                label = int(originals(_SOURCE)[1][self._pool[which]])
                self._place(self._digit(which), 1 + (label if self._digits == "ten" else 0))
        self._placed.sort(key=lambda one: one.box[3])  # what stands lower is nearer
        if self._placed and self._chance(2):
            self._hide(self._placed[self._below(len(self._placed))].box)
        for one in self._placed:
            self._paint(one)
        rows = told(self._placed, self._size)
        if crowd:
            rows.append([*crowd, 0, IGNORED, 1])
        return np.array(rows, np.float32).reshape(-1, 7)

    def _below(self, limit: int) -> int:
        return int(self._dice.below(limit, 1)[0])

    def _chance(self, of: int) -> bool:
        return self._below(of) == 0

    def _between(self, low: float, high: float) -> float:
        return float(self._dice.between(low, high, 1)[0])

    def _colour(self, least: int, most: int) -> NDArray[np.int64]:
        colour: NDArray[np.int64] = contrasting(self._dice, self._base, least, most)[0].astype(np.int64)
        return colour

    def _person(self, share: float) -> Drawing:
        return _tight(
            drawn(*person(self._dice, self._colour(40, 130), self._colour(40, 130)), round(share * self._size))
        )

    def _digit(self, which: int) -> Drawing:
        dice, window = self._dice, 3 * self._size // 8
        mask = warp(
            originals(_SOURCE)[0][self._pool[which : which + 1]],
            scale=dice.between(0.4, 0.85, 1) * (self._size / 96),
            angle=dice.between(-np.deg2rad(20), np.deg2rad(20), 1),
            shear=dice.between(-0.2, 0.2, 1),
            shift=np.zeros((1, 2)),
            size=window,
        )[0]
        colours = np.broadcast_to(self._colour(68, 140)[:, None, None], (3, window, window)).astype(np.int32)
        return _tight(Drawing(colours, mask))

    def _place(self, drawing: Drawing, label: int, kind: int = OBJECT) -> None:
        """Somewhere within the image, where possible not over others."""
        height, width = drawing.mask.shape
        for _ in range(_TRIES):
            left, top = self._below(self._size - width + 1), self._below(self._size - height + 1)
            placed = Placed(drawing, left, top, label, kind)
            if all(_common(placed.box, other.box) <= _WIDEST for other in self._placed):
                break
        self._placed.append(placed)

    def _clutter(self) -> None:
        """Signs, posts and blots, and now and then half a digit, all behind what is to be found."""
        for _ in range(3 + self._below(4)):
            strokes, height = self._post() if self._chance(2) else self._blot()
            piece = drawn(strokes, self._colour(25, 100)[None], height)
            self._paint(self._anywhere(piece))
        for _ in range(self._below(2)):
            digit = self._digit(self._below(len(self._pool)))
            digit.mask[:, : digit.mask.shape[1] // 2] = 0
            self._paint(self._anywhere(digit))

    def _anywhere(self, drawing: Drawing) -> Placed:
        """With its middle within the image."""
        height, width = drawing.mask.shape
        return Placed(drawing, self._below(self._size) - width // 2, self._below(self._size) - height // 2)

    def _post(self) -> tuple[list[Stroke], int]:
        """Of the height of a person, and sometimes with a sign where a head would be."""
        strokes = [Stroke((0, 20), (0, 1000), self._between(15, 60), 0)]
        if self._chance(2):
            strokes.append(Stroke((0, 90), (0, self._between(90, 300)), self._between(60, 110), 0))
        return strokes, round(self._between(0.2, 0.7) * self._size)

    def _blot(self) -> tuple[list[Stroke], int]:
        ends = self._dice.between(0, 1000, 4).tolist()
        return [Stroke((ends[0], ends[1]), (ends[2], ends[3]), self._between(80, 260), 0)], self._size // 4

    def _crowd(self) -> _Box:
        """Several small persons side by side, behind all else, as one region."""
        count = 4 + self._below(4)
        persons = [self._person(self._between(0.16, 0.24)) for _ in range(count)]
        step = max(1, self._size // 16)
        height = max(one.mask.shape[0] for one in persons)
        width = max(at * step + one.mask.shape[1] for at, one in enumerate(persons))
        left, top = self._below(max(1, self._size - width)), self._below(self._size - height)
        for at, one in enumerate(persons):
            self._paint(Placed(one, left + at * step, top + height - one.mask.shape[0]))
        return (left, top, min(left + width, self._size), top + height)

    def _hide(self, box: _Box) -> None:
        """Puts something in front of a part of what is in `box`."""
        x1, y1, x2, y2 = box
        share = self._between(0.2, 0.6)
        if self._chance(2):  # a wall before its lower part
            wide, high = round((x2 - x1) * self._between(1.1, 1.6)), max(2, round((y2 - y1) * share))
            left, top = (x1 + x2 - wide) // 2, y2 - high
        else:  # a post before one side
            wide, high = max(2, round((x2 - x1) * share)), round((y2 - y1) * 1.15)
            left, top = (x1 - 1 if self._chance(2) else x2 + 1 - wide), y1 - (high - (y2 - y1)) // 2
        colours = np.broadcast_to(self._colour(30, 110)[:, None, None], (3, high, wide)).astype(np.int32)
        wall = Drawing(colours, np.full((high, wide), 256, np.int32))
        self._placed.append(Placed(wall, left, top))

    def _paint(self, one: Placed) -> None:
        inner, outer = _within(one.box, self._size)
        below = self._canvas[:, *outer]
        below += ((one.drawing.colours[:, *inner] - below) * one.drawing.mask[inner]) >> 8


def told(placed: Sequence[Placed], size: int) -> list[list[float]]:
    """The label of each object that can be seen, and which share of it no later one covers, in an image of `size`."""
    rows: list[list[float]] = []
    covered = np.zeros((size, size), bool)
    for one in reversed(placed):
        inner, outer = _within(one.box, size)
        mask = (one.drawing.mask >= 128)[inner]
        seen = (mask & ~covered[outer]).sum() / mask.sum() if one.kind == OBJECT else 0
        if seen > 0:
            rows.append([*one.box, one.label, OBJECT if seen >= _LEAST_SEEN else IGNORED, seen])
        covered[outer] |= mask
    return rows


def _tight(drawing: Drawing) -> Drawing:
    """Cut to the pixels that it covers by half or more."""
    rows, columns = (np.flatnonzero((drawing.mask >= 128).any(axis=axis)) for axis in (1, 0))
    at = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return Drawing(drawing.colours[:, *at], drawing.mask[at])


def _within(box: _Box, size: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Of a drawing at `box` the rows and columns within an image, in the drawing and in the image."""
    (left, right), (top, bottom) = ((max(box[at], 0), min(box[at + 2], size)) for at in (0, 1))
    right, bottom = max(right, left), max(bottom, top)
    inner = (slice(top - box[1], bottom - box[1]), slice(left - box[0], right - box[0]))
    return inner, (slice(top, bottom), slice(left, right))


def _common(one: _Box, other: _Box) -> float:
    """Share of the smaller box that lies in the other."""
    width, height = (max(0, min(one[at + 2], other[at + 2]) - max(one[at], other[at])) for at in (0, 1))
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return width * height / smaller
