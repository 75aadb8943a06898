"""Questions to the checker, put on behalf of a caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from fastapi.concurrency import run_in_threadpool

from search.files import upload_in
from search.spec import JobSpec, Pick, TeacherSpec
from service.checker import Checker, CheckerBusy
from service.store.ports import Record
from service.store.values import Caller

CHECKS_AT_ONCE, CHECKS_WAITING = 8, 64
LOOK_SHARE = 1 / 3
"""Of the time that an answer may take, what is spent on opening files of a dataset; the rest is for listing them."""
A = TypeVar("A")


class Asking:
    """
    Puts questions to the checker in threads of their own, so that slow ones keep nobody else waiting, and turns away
    those for whom too many wait already. Belongs to one event loop.
    """

    def __init__(self, checker: Checker, check_seconds: float) -> None:
        self.checker, self.look_seconds, self._open = checker, check_seconds * LOOK_SHARE, 0
        self._threads = anyio.CapacityLimiter(CHECKS_AT_ONCE)

    def of(self, caller: Caller, record: Record) -> Questions:
        return Questions(self, caller, record)

    async def ask(self, question: Callable[[], A]) -> A:
        """Raises `CheckerBusy`, and what the question raises."""
        if self._open >= CHECKS_AT_ONCE + CHECKS_WAITING:
            raise CheckerBusy("too many jobs are being checked at the moment; try again in some seconds")
        self._open += 1
        try:
            return await anyio.to_thread.run_sync(question, limiter=self._threads)
        finally:
            self._open -= 1


@dataclass(frozen=True, slots=True)
class Questions:
    """
    What a caller may ask; every answer raises as that of `Checker` does.

    The checker knows no tenants. So whether an upload is the caller's own is asked of the record first.
    """

    asking: Asking
    caller: Caller
    record: Record

    async def check(self, spec: JobSpec) -> dict[str, Any]:
        await self._own(spec.teacher)
        checker = self.asking.checker
        plan = checker.known(spec)
        return await self.asking.ask(partial(checker.check, spec)) if plan is None else plan

    async def catalog(self, kind: str) -> list[dict[str, Any]]:
        return await self.asking.ask(partial(self.asking.checker.catalog, kind))

    async def teacher(self, teacher: TeacherSpec, dataset: Pick) -> Mapping[str, Any]:
        await self._own(teacher)
        return await self.asking.ask(partial(self.asking.checker.teacher, teacher, dataset))

    async def dataset(self, dataset: Pick) -> Mapping[str, Any]:
        return await self.asking.ask(partial(self.asking.checker.dataset, dataset, self.asking.look_seconds))

    async def _own(self, teacher: TeacherSpec) -> None:
        upload_id = upload_in(teacher.weights)
        if upload_id is not None:
            await run_in_threadpool(self.record.uploads(self.caller).check, upload_id)
