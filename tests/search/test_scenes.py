from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from search.boxes import BOX, CLASS, IGNORED, KIND, OBJECT, VISIBLE
from search.datasets import scenes
from search.datasets.canvas import Dice
from search.datasets.digits import CLASSES
from search.datasets.figures import Drawing, Stroke, drawn, person
from search.datasets.scenes import Placed, Scenes, told
from search.files import Files
from search.plugins import Split

GOLDEN = "cefd3fb317f3e1b5ea65e3456bdfec8fc693defe885610893dc09a32f6d62447"


def compose(count: int, folder: Path, **options: object) -> Split:
    return Scenes(Scenes.Options(size=64, **options), Files(folder)).compose("train", count, "0 train")


def test_the_bytes_are_the_same_on_every_machine(tmp_path: Path) -> None:
    split = compose(8, tmp_path)
    assert hashlib.sha256(split.images.tobytes() + split.labels.astype("<f4").tobytes()).hexdigest() == GOLDEN


def test_scenes_hold_what_is_told_of_them(tmp_path: Path) -> None:
    labels = compose(100, tmp_path).labels
    objects = labels[..., KIND] == OBJECT
    assert 5 <= (objects.sum(axis=1) == 0).sum() <= 25
    assert objects.sum(axis=1).max() == 5
    assert 0.05 < (labels[objects][:, VISIBLE] < 0.9).mean() < 0.4
    assert labels[objects][:, VISIBLE].min() >= 0.2
    assert (labels[..., KIND] == IGNORED).sum() >= 5
    heights = labels[objects & (labels[..., CLASS] == 0)][:, 3] - labels[objects & (labels[..., CLASS] == 0)][:, 1]
    assert heights.max() > 2.5 * heights.min()


@pytest.mark.parametrize(("digits", "classes"), [("one", ("digit",)), ("ten", CLASSES), ("none", ())])
def test_digits_are_as_many_classes_as_asked(digits: str, classes: tuple[str, ...], tmp_path: Path) -> None:
    info = Scenes(Scenes.Options(digits=digits), Files(tmp_path)).info()
    assert info.classes == ("pedestrian", *classes)
    assert info.mirror == (digits != "ten")
    labels = compose(40, tmp_path, digits=digits).labels
    assert labels[..., CLASS].max() >= len(classes) * 0.7
    assert labels[..., CLASS].max() <= len(classes)


def block(height: int, width: int) -> Drawing:
    return Drawing(np.zeros((3, height, width), np.int32), np.full((height, width), 256, np.int32))


def test_what_is_covered_is_counted_pixel_by_pixel() -> None:
    """A wall before the left half of the second object; the first is hidden whole, the third to nine tenths."""
    far = [Placed(block(4, 4), 32, 31, 1, OBJECT), Placed(block(20, 10), 30, 30, 2, OBJECT)]
    near = [Placed(block(10, 10), 5, 5, 0, OBJECT), Placed(block(22, 5), 30, 29), Placed(block(9, 20), 0, 5)]
    assert told([*far, *near], 64) == [
        [5, 5, 15, 15, 0, IGNORED, pytest.approx(0.1)],
        [30, 30, 40, 50, 2, OBJECT, pytest.approx(0.5)],
    ]


def test_what_covers_may_reach_out_of_the_image() -> None:
    rows = told([Placed(block(10, 10), 0, 54, 0, OBJECT), Placed(block(30, 8), -3, 50)], 64)
    assert rows == [[0, 54, 10, 64, 0, OBJECT, pytest.approx(0.5)]]


def test_a_box_goes_round_what_is_painted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anything else in the image, what is not its background is as wide and high as the box says."""
    monkeypatch.setattr(scenes, "background", lambda _, base, size: np.full((len(base), 3, size, size), 999))
    monkeypatch.setattr(scenes, "developed", lambda _, canvas: (canvas < 600) * 1)  # covered by about half or more
    monkeypatch.setattr(scenes.Scene, "_clutter", lambda _: None)
    split = compose(60, tmp_path)
    alone = (split.labels[..., KIND].sum(axis=1) == OBJECT) & (split.labels[:, 0, VISIBLE] == 1)
    assert alone.sum() >= 5
    for image, row in zip(split.images[alone].all(axis=1), split.labels[alone, 0], strict=True):
        columns, rows = image.any(axis=0).nonzero()[0], image.any(axis=1).nonzero()[0]
        assert np.abs(row[BOX] - [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]).max() <= 1


@pytest.mark.parametrize(("length", "radius"), [(0, 300), (600, 120)])
def test_a_stroke_covers_its_area(length: float, radius: float) -> None:
    """A line with round ends is a rectangle and a disc."""
    drawing = drawn([Stroke((0, 0), (length * 0.6, length * 0.8), radius, 1)], np.array([[0] * 3, [9, 8, 7]]), 100)
    expected = (2 * radius * length + np.pi * radius**2) / 100
    assert drawing.mask.sum() / 256 == pytest.approx(expected, rel=0.01)
    assert (drawing.colours[:, drawing.mask > 0].T == [9, 8, 7]).all()


def test_later_strokes_cover_earlier_ones() -> None:
    palette = np.array([[200, 0, 0], [0, 200, 0]])
    drawing = drawn([Stroke((0, 500), (0, 500), 400, 0), Stroke((0, 500), (0, 500), 200, 1)], palette, 50)
    middle, edge = drawing.colours[:, 20, 20], drawing.colours[:, 20, 3]
    assert middle.tolist() == [0, 200, 0]
    assert edge.tolist() == [200, 0, 0]


def test_persons_stand_upright_and_differ() -> None:
    dice, colour = Dice("persons"), np.array([100, 100, 100])
    drawings = [drawn(*person(dice, colour, colour), 60) for _ in range(20)]
    assert len({drawing.mask.tobytes() for drawing in drawings}) == 20
    for drawing in drawings:
        height, width = drawing.mask.shape
        assert 55 <= height <= 63
        assert 0.15 * height < width < 0.85 * height
