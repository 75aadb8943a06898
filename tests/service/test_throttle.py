"""How often a key may be used, on a clock of our own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.throttle import Throttle
from tests.service.served import in_threads


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_empties_and_fills() -> None:
    clock = Clock()
    throttle = Throttle(2.0, 4, clock)
    assert [throttle.take("a").wait for _ in range(5)] == [0, 0, 0, 0, 1]
    assert throttle.take("b").wait == 0
    clock.now += 0.5
    assert [throttle.take("a").wait for _ in range(2)] == [0, 1]
    clock.now += 1000
    assert [throttle.take("a").wait for _ in range(5)] == [0, 0, 0, 0, 1]


def test_what_is_asked_to_wait_is_enough() -> None:
    clock = Clock()
    throttle = Throttle(0.3, 1, clock)
    assert throttle.take("a").wait == 0
    wait = throttle.take("a").wait
    assert wait == 4
    clock.now += wait
    assert throttle.take("a").wait == 0


@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.floats(0, 10), min_size=1, max_size=60),
)
def test_never_more_than_the_burst_and_what_has_come_in_since(rate: float, burst: int, pauses: list[float]) -> None:
    clock = Clock()
    throttle = Throttle(rate, burst, clock)
    began, taken = clock.now, 0
    for pause in pauses:
        clock.now += pause
        taken += throttle.take("a").wait == 0
        assert taken <= burst + rate * (clock.now - began) + 1e-6


def test_threads_share_one_bucket() -> None:
    throttle = Throttle(0.001, 30)
    assert sum(throttle.take("a").wait == 0 for _ in range(1)) == 1
    assert sum(found.wait == 0 for found in in_threads(50, lambda _: throttle.take("a"))) == 29


def test_buckets_that_are_full_again_are_forgotten_and_others_are_not() -> None:
    clock = Clock()
    throttle = Throttle(1.0, 2, clock, most=3)
    for key in ("a", "b", "c"):
        throttle.take(key)
    clock.now += 1
    assert [throttle.take("busy").wait for _ in range(3)] == [0, 0, 1]
    assert throttle._buckets.keys() == {"busy"}
    assert throttle.take("busy").wait == 1
