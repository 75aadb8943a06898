from __future__ import annotations

from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.boxes import IGNORED, OBJECT, Boxes, packed
from search.detections import FOUND_COLUMNS, Detections, Found, judge, miss_rate

Row = list[float]


def thing(x: float, y: float = 0, *, high: float = 60, number: int = 0, kind: int = OBJECT, visible: float = 1) -> Row:
    return [x, y, x + 20, y + high, number, kind, visible]


def found(images: list[list[Row]]) -> Detections:
    """Rows of x1, y1, x2, y2, score, class."""
    detections = np.zeros((len(images), max([1, *map(len, images)]), FOUND_COLUMNS), np.float32)
    for place, rows in zip(detections, images, strict=True):
        place[: len(rows)] = np.reshape(rows, (-1, FOUND_COLUMNS))
    return detections


def hit(row: Row, score: float, number: int | None = None) -> Row:
    return [*row[:4], score, row[4] if number is None else number]


def test_everything_found_and_nothing_else() -> None:
    labels = [[thing(0), thing(50, number=1)], [], [thing(10)]]
    shown = found([[hit(row, 0.9) for row in rows] for rows in labels])
    assert judge(shown, packed(labels), 2) == Found(pytest.approx(1), pytest.approx(1), pytest.approx(0, abs=1e-9))


def test_nothing_found() -> None:
    labels = packed([[thing(0)], [thing(50, number=1)]])
    assert judge(found([[], []]), labels, 2) == Found(0, 0, 1)


def test_without_an_object_there_is_nothing_to_be_good_at() -> None:
    assert judge(found([[], []]), packed([[], []]), 3) == Found(0, 0, 1)
    assert judge(found([[hit(thing(0), 1)]]), packed([[thing(0, kind=IGNORED)]]), 3) == Found(0, 0, 1)


def test_classes_without_an_object_are_left_out() -> None:
    labels = [[thing(0), thing(50)]]
    shown = [
        hit(labels[0][0], 0.9),
        hit(labels[0][1], 0.8, number=2),
    ]  # one of two, and one of a class that is not there
    judged = judge(found([shown]), packed(labels), 3)
    assert judged == judge(found([shown[:1]]), packed(labels), 1)
    assert judged.ap50 == pytest.approx(51 / 101)  # precision 1 at the recalls 0, .01, ..., .5
    assert judged.miss_rate == pytest.approx(0.5)


def test_a_detection_of_another_class_is_no_hit() -> None:
    labels = packed([[thing(0), thing(50, number=1)]])
    assert judge(found([[hit(thing(0), 0.9, number=1)]]), labels, 2).ap50 == 0


def test_the_second_detection_of_an_object_is_false() -> None:
    """In one image a false detection comes at a rate of 1, where the miss rate is read for the last time."""
    labels = packed([[thing(0), thing(50)]])
    judged = judge(found([[hit(thing(0), 0.9), hit(thing(1), 0.8), hit(thing(50), 0.7)]]), labels, 1)
    assert judged.ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert judged.miss_rate == pytest.approx(exp((8 * log(0.5) + log(1e-10)) / 9))


def test_what_is_ignored_is_neither_found_nor_missed() -> None:
    labels = [[thing(0), [40, 0, 100, 100, 0, IGNORED, 1]]]
    inside = [[45, 10, 60, 60, 0.95, 0], [60, 10, 80, 70, 0.9, 0]]  # little of the region's, but all of their own area
    judged = judge(found([[*inside, hit(thing(0), 0.5)]]), packed(labels), 1)
    assert judged == Found(pytest.approx(1), pytest.approx(1), pytest.approx(0, abs=1e-9))
    outside = [[90, 0, 120, 60, 0.9, 0]]  # a third of it lies within
    assert judge(found([[*outside, hit(thing(0), 0.5)]]), packed(labels), 1).ap50 == pytest.approx(0.5)


def test_of_an_object_and_something_ignored_the_object_is_taken() -> None:
    labels = packed([[thing(0), [0, 0, 100, 100, 0, IGNORED, 1]]])
    assert judge(found([[hit(thing(0), 0.5)]]), labels, 1).miss_rate == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("row", [thing(50, high=49), thing(50, visible=0.64)])
def test_the_miss_rate_is_of_reasonable_objects(row: Row) -> None:
    labels = packed([[thing(0), row]])
    for shown in ([hit(thing(0), 0.5)], [hit(thing(0), 0.5), hit(row, 0.9)]):
        assert judge(found([shown]), labels, 1).miss_rate == pytest.approx(0, abs=1e-9)
    assert judge(found([[hit(thing(0), 0.5)]]), labels, 1).ap50 == pytest.approx(51 / 101)
    both = judge(found([[hit(thing(0), 0.5)]]), labels, 1, least_height=40, least_visible=0.5)
    assert both.miss_rate == pytest.approx(0.5)


def test_without_a_reasonable_object_there_is_no_miss_rate() -> None:
    labels = packed([[thing(0, high=30)]])
    shown = found([[hit(thing(0, high=30), 0.5)]])
    assert miss_rate(shown, labels, 0, 50, 0.65) is None
    assert judge(shown, labels, 1) == Found(pytest.approx(1), pytest.approx(1), 1)


@pytest.mark.parametrize(("high", "rate"), [(39, 0), (41, exp(log(1e-10) / 9))])
def test_detections_much_lower_than_any_that_counts_are_not_looked_at(high: float, rate: float) -> None:
    """A false one before the hit, in one image: what is found is found at a rate of 1 only."""
    shown = found([[hit(thing(50, high=high), 0.9), hit(thing(0), 0.5)]])
    assert judge(shown, packed([[thing(0)]]), 1).miss_rate == pytest.approx(rate, abs=1e-9)


def test_a_curve_computed_by_hand() -> None:
    """
    Ten images, four objects. In order of score: hit, false, hit, false, false, false, hit. So misses are 3/4 up to
    a rate of .1, 2/4 from there on, 1/4 from .4 on; the nine rates are .01 .018 .032 .056 | .1 .178 .316 | .562 1.
    """
    labels = [[thing(0)] if image < 4 else [] for image in range(10)]
    wrong = thing(50)
    shown: list[list[Row]] = [[] for _ in range(10)]
    shown[0] = [hit(thing(0), 0.9), hit(wrong, 0.8)]
    shown[1] = [hit(thing(0), 0.7), hit(wrong, 0.6)]
    shown[7] = [hit(wrong, 0.5), hit(thing(80), 0.4)]
    shown[2] = [hit(thing(0), 0.3)]
    expected = exp((4 * log(3 / 4) + 3 * log(2 / 4) + 2 * log(1 / 4)) / 9)
    assert judge(found(shown), packed(labels), 1).miss_rate == pytest.approx(expected)


small = st.integers(0, 5)
boxes = st.tuples(small, small, st.integers(1, 4), st.integers(1, 4)).map(
    lambda box: [box[0], box[1], box[0] + box[2], box[1] + box[3]]
)
pictures = st.lists(st.tuples(st.lists(boxes, max_size=3), st.lists(boxes, max_size=4)), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(pictures, st.integers(0, 1000))
def test_average_precision_is_that_of_a_plain_count(cases: list[tuple[list[Row], list[Row]]], seed: int) -> None:
    scores = np.random.default_rng(seed).permutation(sum(len(told) for _, told in cases)) + 1
    ranks = iter(scores.tolist())
    labels = packed([[[*box, 0, OBJECT, 1] for box in there] for there, _ in cases])
    shown = found([[[*box, next(ranks) / 100, 0] for box in told] for _, told in cases])
    if not any(there for there, _ in cases):
        return
    overlaps = np.linspace(0.5, 0.95, 10)
    counted = [plain_precision(shown, labels, overlap) for overlap in overlaps]
    judged = judge(shown, labels, 1)
    assert judged.ap50 == pytest.approx(counted[0])
    assert judged.map == pytest.approx(np.mean(counted))


def plain_precision(shown: Detections, labels: Boxes, least: float) -> float:
    """The best precision at each of 101 recalls, by the definition: box by box, in order of score."""
    free = {(image, place) for image, place in zip(*labels[..., 5].nonzero(), strict=True)}
    wanted, hits, curve = len(free), 0, []
    order = sorted(zip(*shown[..., 4].nonzero(), strict=True), key=lambda at: -shown[at][4])
    for count, (image, place) in enumerate(order, start=1):
        near = [(overlap(shown[image, place], labels[at]), at) for at in free if at[0] == image]
        best = max(near, default=(0.0, None))
        if best[1] is not None and best[0] >= least - 1e-9:
            free.remove(best[1])
            hits += 1
        curve.append((hits / wanted, hits / count))
    return float(np.mean([max([p for r, p in curve if r >= recall], default=0.0) for recall in np.linspace(0, 1, 101)]))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    cells = [{(x, y) for x in range(int(b[0]), int(b[2])) for y in range(int(b[1]), int(b[3]))} for b in (one, other)]
    return len(cells[0] & cells[1]) / len(cells[0] | cells[1])
