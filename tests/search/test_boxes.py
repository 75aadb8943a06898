from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.boxes import (
    BOX,
    IGNORED,
    KIND,
    LEAST_LEFT,
    NOTHING,
    OBJECT,
    VISIBLE,
    Boxes,
    areas,
    mirrored,
    packed,
    shifted,
)

SIZE = 12


@st.composite
def rows(draw: st.DrawFn) -> list[list[float]]:
    """Of one image: boxes on whole pixels, some reaching to its border."""
    found = []
    for _ in range(draw(st.integers(0, 3))):
        x, y = draw(st.integers(0, SIZE - 1)), draw(st.integers(0, SIZE - 1))
        right, bottom = draw(st.integers(x + 1, SIZE)), draw(st.integers(y + 1, SIZE))
        found.append([x, y, right, bottom, draw(st.integers(0, 2)), draw(st.sampled_from([OBJECT, IGNORED])), 1])
    return found


images = st.lists(rows(), min_size=1, max_size=3).map(packed)


def mask(row: Boxes) -> np.ndarray:
    x1, y1, x2, y2 = row[BOX].astype(int)
    drawn = np.zeros((SIZE, SIZE), bool)
    drawn[y1:y2, x1:x2] = True
    return drawn


def test_rows_are_packed_behind_each_other() -> None:
    one, two = [0, 0, 2, 3, 1, OBJECT, 1], [1, 1, 4, 4, 0, IGNORED, 0.5]
    labels = packed([[one], [], [two, one]])
    assert labels.dtype == np.float32
    assert labels.tolist() == [[one, [0] * 7], [[0] * 7] * 2, [two, one]]
    assert areas(labels).tolist() == [[6, 0], [0, 0], [9, 6]]


def test_images_without_rows_have_room_for_one() -> None:
    assert packed([[], []]).tolist() == [[[0] * 7]] * 2
    assert packed([]).shape == (0, 1, 7)


@given(images)
def test_mirrored_twice_is_as_before(labels: Boxes) -> None:
    once = mirrored(labels, SIZE)
    assert (mirrored(once, SIZE) == labels).all()
    for row, other in zip(labels.reshape(-1, 7), once.reshape(-1, 7), strict=True):
        assert (mask(other) == mask(row)[:, ::-1]).all()


@given(images, st.integers(-SIZE, SIZE), st.integers(-SIZE, SIZE))
def test_boxes_are_shifted_as_masks_are(labels: Boxes, down: int, right: int) -> None:
    before = labels.copy()
    n = len(labels)
    moved = shifted(labels, np.full(n, down), np.full(n, right), SIZE)
    assert (labels == before).all()
    for row, other in zip(labels.reshape(-1, 7), moved.reshape(-1, 7), strict=True):
        wide = np.zeros((3 * SIZE, 3 * SIZE), bool)
        wide[SIZE + down : 2 * SIZE + down, SIZE + right : 2 * SIZE + right] = mask(row)
        expected = wide[SIZE : 2 * SIZE, SIZE : 2 * SIZE]
        if row[KIND] == NOTHING or not expected.any():
            assert (other == 0).all()
            continue
        assert (mask(other) == expected).all()
        left = expected.sum() / mask(row).sum()
        assert np.isclose(other[VISIBLE], left)
        assert other[KIND] == (IGNORED if left < LEAST_LEFT else row[KIND])
        assert other[4] == row[4]


def test_each_image_moves_its_own_way() -> None:
    row = [4, 4, 8, 8, 0, OBJECT, 0.5]
    moved = shifted(packed([[row], [row]]), np.array([0, 6]), np.array([-2, 0]), SIZE)
    assert moved[0, 0].tolist() == [2, 4, 6, 8, 0, OBJECT, 0.5]
    assert moved[1, 0].tolist() == [4, 10, 8, 12, 0, OBJECT, 0.25]
