"""Where work is done: a `Backend` carries out what a `Session` hands out. Built twice, held to one contract suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, Protocol, TypeVar

from workers.assignment import Assignment, Outcome, Progress
from workers.workload import Workload

Item = TypeVar("Item")


class Wait(Enum):
    """Nothing to do yet: what is being done now must end first."""

    WAIT = "wait"


WAIT = Wait.WAIT


class Session(Protocol):
    """
    The driver as a backend sees it. Called from one thread; never called again after `next` has said None and every
    assignment has ended.
    """

    @property
    def slots(self) -> int:
        """How many assignments may be under way at once."""
        ...

    def next(self) -> Assignment | Wait | None:
        """The next assignment; `WAIT` only while one is under way; None: there will be no more."""
        ...

    def progress(self, assignment: Assignment, progress: Progress) -> None: ...

    def ended(self, assignment: Assignment, outcome: Outcome) -> None:
        """Called exactly once for every assignment given out, unless `stopping` became true before its end."""
        ...

    def stopping(self) -> bool:
        """True once everything under way shall be dropped, because the user has cancelled or the lease is lost."""
        ...


class Backend(Protocol):
    """
    Laws, held by the contract suite:
    1. `run` returns when the session has no more assignments and all have ended, or soon after `stopping`.
    2. At most `session.slots` assignments are under way at once.
    3. A worker that dies ends its assignment as `Lost`; the others go on.
    4. `map` raises what `function` raised, with its type.
    """

    def check(self, *, cpus: int, gpus: float) -> None:
        """
        Raises:
            UserError: no worker will ever have that many CPUs or GPUs, so a trial would wait for ever.
        """
        ...

    def run(self, session: Session, workload: Workload) -> None: ...

    def map(
        self,
        function: Callable[..., Iterator[Any]],
        items: Iterable[Item],
        *,
        cpus: int,
        gpus: float,
        stopping: Callable[[], bool],
        shared: Any = None,
    ) -> Iterator[tuple[int, Any]]:
        """
        Calls `function` for every item, side by side where there is room, and yields `(index, value)` for every value
        that it yields, as they come. What is `shared` by all calls goes to each as a second argument; its arrays are
        not copied for every one. Functions and items must be picklable. A call gets `cpus` threads, or as many as
        the largest machine has. Ends early, soon after `stopping` says so.
        """
        ...

    def close(self) -> None:
        """Gives back what the backend holds. Safe to call twice."""
        ...
