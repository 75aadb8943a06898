"""The curriculum of a student: who makes it, when, and which images a step may draw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search.course import Course, course_of
from search.distillers.sequence import Sequence, difficulty, paced, stratified
from tests.search.courses import material, pool, student

STEPS, COUNT = 100, 24


def opened(**options: object) -> Course:
    return course_of(Sequence(Sequence.Options.model_validate(options)), student(), material(STEPS))


def order(course: Course) -> list[int]:
    return course.extras["curriculum"].get_buffer("order").tolist()


def drawn(course: Course, step: int, size: int = 8) -> set[int]:
    """Which images, whichever view of them, a step draws; told by their pixels."""
    images = pool().normalise(pool().images)
    batch = course.draw(pool(), step, size)
    found = {int(np.flatnonzero([torch.equal(one, other) for other in images])[0]) % COUNT for one in batch.images}
    assert len(found) == len(batch.images)
    return found


def test_difficulties_by_hand() -> None:
    """Logits (ln 3, 0): the label's probability is 3/4."""
    logits, labels = torch.tensor([[math.log(3), 0.0]]), torch.tensor([0])
    assert difficulty(logits, labels, logits, "loss").item() == pytest.approx(-math.log(0.75))
    assert difficulty(logits, labels, logits, "confidence").item() == pytest.approx(0.25)
    assert difficulty(logits, labels, logits, "divergence").item() == pytest.approx(0, abs=1e-6)
    even = torch.zeros(1, 2)
    assert difficulty(logits, labels, even, "divergence").item() == pytest.approx(
        0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    )


def test_the_share_grows_to_all() -> None:
    linear, jumps = Sequence.Options(), Sequence.Options(pacing="buckets", buckets=4)
    assert [paced(linear, done, 0.4) for done in (0, 0.5, 1)] == pytest.approx([0.4, 0.7, 1])
    assert [paced(jumps, done, 0.4) for done in (0, 0.24, 0.25, 0.5, 0.75, 1)] == pytest.approx(
        [0.4, 0.4, 0.6, 0.8, 1, 1]
    )


def test_phases_begin_with_the_easiest_and_end_with_all() -> None:
    course = opened(first=0.1, phases=3, easiest=0.25)
    course.before(10)
    easiest = set(order(course)[:6])
    assert drawn(course, 10) <= easiest
    late = set().union(*(drawn(course, step) for step in range(38, 40)))
    assert not late <= easiest
    assert set().union(*(drawn(course, 99, COUNT) for _ in range(1))) == set(range(COUNT))


def test_the_student_makes_the_order_and_makes_it_anew() -> None:
    course = opened(first=0.1, phases=3)
    course.before(10)
    first = order(course)
    assert sorted(first) == list(range(COUNT))
    scores = difficulty(course.student.eval()(pool().pick(np.arange(COUNT)).images), *_rest(), "loss")
    assert scores[first].diff().min() >= 0
    course.before(11)
    assert order(course) == first
    with torch.no_grad():
        for parameter in course.student.parameters():
            parameter.mul_(-0.7)
    course.before(40)
    assert order(course) != first


def test_controls() -> None:
    """The teacher's order is the teacher's, the reversed one the student's from behind, the random one neither."""
    orders = {}
    for name in ("student", "teacher", "reversed", "random"):
        course = opened(first=0.1, order=name)
        course.before(10)
        orders[name] = order(course)
    assert orders["reversed"] == orders["student"][::-1]
    batch = pool().pick(np.arange(COUNT))
    assert batch.teacher_logits is not None
    assert difficulty(batch.teacher_logits, *_rest(), "loss")[orders["teacher"]].diff().min() >= 0
    assert orders["random"] not in (orders["student"], orders["teacher"], orders["reversed"])


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(0, 1000))
def test_every_beginning_of_a_balanced_order_has_its_share_of_each_class(labels: list[int], seed: int) -> None:
    given_labels = np.array(labels)
    whole = np.random.default_rng(seed).permutation(len(labels))
    found = stratified(whole, given_labels)
    assert sorted(found) == list(range(len(labels)))
    for label in set(labels):
        mine = [at for at in whole if labels[at] == label]
        assert [at for at in found if labels[at] == label] == mine
        for stop in range(1, len(labels) + 1):
            wanted = stop * len(mine) / len(labels)
            assert abs(sum(labels[at] == label for at in found[:stop]) - wanted) <= len(set(labels))


def _rest() -> tuple[torch.Tensor, torch.Tensor]:
    batch = pool().pick(np.arange(COUNT))
    assert batch.teacher_logits is not None
    return batch.labels, batch.teacher_logits
