"""One look for all who wait."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping

import anyio
import pytest

from search.errors import StoreUnavailable
from service import lookout as room
from service.lookout import Lookout


class Record:
    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.asked: list[set[str]] = []
        self.failure: Exception | None = None

    def latest(self, job_ids: Collection[str]) -> Mapping[str, int]:
        self.asked.append(set(job_ids))
        if self.failure is not None:
            raise self.failure
        return {job_id: self.numbers[job_id] for job_id in job_ids if job_id in self.numbers}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "LOOK_SECONDS", 0.01)


def test_who_waits_is_woken_by_what_is_new_to_it_and_by_nothing_else() -> None:
    record = Record()
    record.numbers = {"a": 3, "b": 1}

    async def scene() -> None:
        lookout = Lookout(record.latest, threading.Event())
        async with anyio.create_task_group() as group:
            group.start_soon(lookout.run)
            await anyio.sleep(0.03)
            assert record.asked == [], "nobody watches"
            with lookout.watching("a", 3) as seen, lookout.watching("a") as fresh, lookout.watching("b", 1) as other:
                with anyio.fail_after(1):
                    await fresh.news(1)
                began = anyio.current_time()
                await seen.news(0.05)
                assert anyio.current_time() - began >= 0.05, "three is no news to who has seen three"
                record.numbers["a"] = 4
                with anyio.fail_after(1):
                    await seen.news(60)
                    await fresh.news(60)
                began = anyio.current_time()
                await other.news(0.05)
                assert anyio.current_time() - began >= 0.05
            assert all(asked == {"a", "b"} for asked in record.asked)
            await anyio.sleep(0.03)
            count = len(record.asked)
            await anyio.sleep(0.05)
            assert len(record.asked) == count, "nor any more"
            group.cancel_scope.cancel()

    anyio.run(scene)


@pytest.mark.parametrize("failure", [StoreUnavailable("it restarts"), RuntimeError("a mistake of ours")])
def test_a_look_that_fails_is_told_to_all_who_wait_and_is_not_the_last(failure: Exception) -> None:
    record = Record()
    record.failure = failure

    async def scene() -> None:
        lookout = Lookout(record.latest, threading.Event())
        async with anyio.create_task_group() as group:
            group.start_soon(lookout.run)
            with lookout.watching("a") as one, lookout.watching("b") as two, anyio.fail_after(2):
                for watch in (one, two):
                    with pytest.raises(StoreUnavailable):
                        await watch.news(60)
                record.failure, record.numbers = None, {"a": 1, "b": 1}
                with lookout.watching("a") as again:
                    await again.news(60)
            group.cancel_scope.cancel()

    anyio.run(scene)


def test_the_end_of_the_server_wakes_everybody() -> None:
    over = threading.Event()

    async def scene() -> None:
        lookout = Lookout(Record().latest, over)
        async with anyio.create_task_group() as group:
            group.start_soon(lookout.run)
            with lookout.watching("a") as watch, anyio.fail_after(1):
                over.set()
                await watch.news(60)
            group.cancel_scope.cancel()

    anyio.run(scene)
