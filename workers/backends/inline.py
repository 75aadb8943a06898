"""The backend without a cluster: everything in this process, one thing after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

import torch

from search.errors import UserError
from workers.assignment import Assignment, Progress
from workers.backends.base import Item, Session, Wait
from workers.scoring import Scorer
from workers.workload import Workload


class InlineBackend:
    """Runs assignments in the calling thread with `threads` torch threads, on the GPU when the spec asks for one."""

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)

    def run(self, session: Session, workload: Workload) -> None:
        scorer: Scorer | None = None
        while not session.stopping():
            assignment = session.next()
            if assignment is None:
                return
            if isinstance(assignment, Wait):
                raise RuntimeError("the session waits while nothing is under way")
            scorer = scorer or Scorer(workload, device=workload.device())
            self._perform(scorer, assignment, session)

    @staticmethod
    def _perform(scorer: Scorer, assignment: Assignment, session: Session) -> None:
        with closing(scorer.perform(assignment)) as heard:
            for word in heard:
                if session.stopping():
                    return
                if isinstance(word, Progress):
                    session.progress(assignment, word)
                else:
                    session.ended(assignment, word)

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
        given = () if shared is None else (shared,)
        for index, item in enumerate(items):
            for value in function(item, *given):
                if stopping():
                    return
                yield index, value

    def check(self, *, cpus: int, gpus: float) -> None:
        if gpus and not torch.cuda.is_available():
            raise UserError(
                "a trial asks for a GPU and this machine has none that torch can use; set it to 0",
                pointer="/resources/gpus_per_trial",
            )

    def close(self) -> None:
        """Nothing is held."""
