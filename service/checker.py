"""
Checks a spec before it is accepted, looks at teachers and datasets that are registered, tells what plugins there are.

All of it needs torch, which the process that answers HTTP never loads: it happens in a child process. Between the two
goes JSON and nothing else, so neither can make the other run anything.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from search.catalog import KINDS, Catalog
from search.errors import FieldError, StillhouseError, Unsupported, UserError
from search.files import Files
from search.part import read_part
from search.spec import JobSpec, Pick, TeacherSpec, read_spec
from service import journal
from workers.uploads import Uploaded

logger = logging.getLogger("stillhouse.checker")

Json = dict[str, Any]


class CheckerBusy(StillhouseError):
    """No answer in time, or the child died over the question; the same question may be answered later."""

    code = "BUSY"


class Checker(Protocol):
    """Threads may share one."""

    def known(self, spec: JobSpec) -> Json | None:
        """What `check` would say, if that is known at once; an event loop may ask."""
        ...

    def check(self, spec: JobSpec) -> Json:
        """
        What the job would do: `search.recipe.Recipe.plan`.

        Raises:
            UserError: the job cannot be done; `errors` says which fields are at fault.
            CheckerBusy: no answer in time.
        """
        ...

    def catalog(self, kind: str) -> list[Json]:
        """`{name, summary, options}` of every plugin of a kind. Raises `UserError` when there is no such kind."""
        ...

    def teacher(self, teacher: TeacherSpec, dataset: Pick) -> Json:
        """`search.inspection.teacher_facts`. Raises as `check` does."""
        ...

    def dataset(self, dataset: Pick, seconds: float) -> Json:
        """`search.inspection.dataset_report`. Raises as `check` does."""
        ...

    def close(self) -> None: ...


class DirectChecker:
    """Checks in this process, which then has torch loaded; for the command line and the child."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def known(self, spec: JobSpec) -> None:
        """Every plan is made anew."""

    def check(self, spec: JobSpec) -> Json:
        from search.recipe import prepare

        return _plain(prepare(spec, self._files).plan())

    def catalog(self, kind: str) -> list[Json]:
        return [_plain(asdict(entry)) for entry in Catalog().describe(kind)]

    def teacher(self, teacher: TeacherSpec, dataset: Pick) -> Json:
        from search.inspection import teacher_facts

        return _plain(teacher_facts(teacher, dataset, self._files))

    def dataset(self, dataset: Pick, seconds: float) -> Json:
        from search.inspection import dataset_report

        return _plain(dataset_report(dataset, self._files, seconds))

    def close(self) -> None:
        """Nothing is held."""


class ChildChecker:
    """
    Checks in a child process, one question at a time, each within `limit_seconds` and `limit_bytes` of memory: a spec
    can ask for a teacher of any size, and half of this machine's memory is enough to look at one.

    The child is started by the first question, and again after it died or was killed for being late. `artifacts` is the
    place of the artifacts, where uploads lie; without it there are none.
    """

    def __init__(
        self, files: Files, *, limit_seconds: float, limit_bytes: int | None = None, artifacts: str | None = None
    ) -> None:
        self._files, self._limit, self._artifacts = files, limit_seconds, artifacts
        self._bytes = limit_bytes or _half_of_memory()
        self._turn = threading.Lock()
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None
        self._closed = False

    def known(self, spec: JobSpec) -> None:
        """Every plan is made anew."""

    def check(self, spec: JobSpec) -> Json:
        answer: Json = self._ask({"check": spec.model_dump(mode="json")})
        return answer

    def catalog(self, kind: str) -> list[Json]:
        answer: list[Json] = self._ask({"catalog": kind})
        return answer

    def teacher(self, teacher: TeacherSpec, dataset: Pick) -> Json:
        named = {"teacher": teacher.model_dump(mode="json"), "dataset": dataset.model_dump(mode="json")}
        answer: Json = self._ask({"teacher": named})
        return answer

    def dataset(self, dataset: Pick, seconds: float) -> Json:
        answer: Json = self._ask({"dataset": dataset.model_dump(mode="json"), "seconds": seconds})
        return answer

    def close(self) -> None:
        self._closed = True
        child = self._child
        if child is None:
            return
        child[0].kill()  # so that a question under way ends now
        with self._turn:
            _end(*child)
            self._child = None

    def _ask(self, question: Json) -> Any:
        deadline = time.monotonic() + self._limit
        if not self._turn.acquire(timeout=self._limit):
            raise CheckerBusy("too many jobs are being checked at the moment; try again in some seconds")
        try:
            if self._closed:
                raise CheckerBusy("the server is shutting down")
            answer = self._exchange(json.dumps(question).encode(), deadline)
        finally:
            self._turn.release()
        if "error" in answer:
            raise _raised(answer["error"])
        return answer["answer"]

    def _exchange(self, question: bytes, deadline: float) -> Json:
        process, pipe = self._living()
        try:
            pipe.send_bytes(question)
            if pipe.poll(max(deadline - time.monotonic(), 0.0)):
                answer: Json = json.loads(pipe.recv_bytes())
                return answer
            logger.warning("the checker gave no answer within %.0f s; it is started again", self._limit)
            reason = f"checking the job took longer than {self._limit:.0f} s; try again, or ask the operator why"
        except (EOFError, OSError):
            logger.warning("the checker died (code %s); it is started again", process.poll())
            reason = "the process that checks jobs died at this one; try again, or ask the operator why"
        _end(process, pipe)
        self._child = None
        raise CheckerBusy(reason)

    def _living(self) -> tuple[subprocess.Popen[bytes], Connection]:
        if self._child is not None and self._child[0].poll() is not None:
            _end(*self._child)
            self._child = None
        if self._child is None:
            self._child = _start(self._files, self._bytes, self._artifacts)
        return self._child


class CachedChecker:
    """
    Remembers plans and catalogs of another checker, so that a flood of equal jobs costs one check.

    A plan is kept for `keep_seconds`, because the files it speaks of may change; a refusal is not kept at all.
    """

    def __init__(
        self,
        inner: Checker,
        *,
        size: int = 256,
        keep_seconds: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner, self._size, self._keep, self._clock = inner, size, keep_seconds, clock
        self._plans: OrderedDict[str, tuple[float, Json]] = OrderedDict()
        self._catalogs: dict[str, list[Json]] = {}
        self._lock = threading.Lock()
        self._asking: dict[str, threading.Lock] = {}

    def known(self, spec: JobSpec) -> Json | None:
        return self._known(_key(spec))

    def check(self, spec: JobSpec) -> Json:
        key = _key(spec)
        with self._lock:
            asking = self._asking.setdefault(key, threading.Lock())
        with asking:
            try:
                plan = self._known(key)
                if plan is None:
                    plan = self._inner.check(spec)
                    self._remember(key, plan)
            finally:
                with self._lock:
                    self._asking.pop(key, None)
        return plan

    def catalog(self, kind: str) -> list[Json]:
        if kind not in self._catalogs:
            self._catalogs[kind] = self._inner.catalog(kind)
        return self._catalogs[kind]

    def teacher(self, teacher: TeacherSpec, dataset: Pick) -> Json:
        return self._inner.teacher(teacher, dataset)

    def dataset(self, dataset: Pick, seconds: float) -> Json:
        return self._inner.dataset(dataset, seconds)

    def close(self) -> None:
        self._inner.close()

    def _known(self, key: str) -> Json | None:
        with self._lock:
            made, plan = self._plans.get(key, (0.0, None))
            return plan if plan is not None and self._clock() - made < self._keep else None

    def _remember(self, key: str, plan: Json) -> None:
        with self._lock:
            self._plans[key] = (self._clock(), plan)
            self._plans.move_to_end(key)
            while len(self._plans) > self._size:
                self._plans.popitem(last=False)


def warm(checker: Checker) -> None:
    """Has everything loaded, in the background, so that the first job does not wait for it."""

    def ask() -> None:
        with suppress(StillhouseError):  # whoever asks next is told
            for kind in KINDS:
                checker.catalog(kind)

    threading.Thread(target=ask, name="checker-warm", daemon=True).start()


_NOT_CHECKED = frozenset({"labels", "priority", "export"})
"""Parts of a spec that no plan depends on."""


def _key(spec: JobSpec) -> str:
    return hashlib.sha256(spec.model_dump_json(exclude=set(_NOT_CHECKED)).encode()).hexdigest()


def _start(files: Files, limit_bytes: int, artifacts: str | None) -> tuple[subprocess.Popen[bytes], Connection]:
    """A program of its own and not a fork or a copy of this one: what this process has imported is no concern of it."""
    roots = None if files.roots is None else [str(root) for root in files.roots]
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.checker"],
            stdin=theirs.fileno(),
            start_new_session=True,  # Ctrl+C is for the server, which ends this one too
        )
        pipe = Connection(ours.detach())
    with suppress(OSError):  # when it died at once, the first question will tell
        start: Json = {"cache": str(files.cache), "roots": roots, "artifacts": artifacts, "bytes": limit_bytes}
        start["journal"] = journal.handed_on()
        pipe.send_bytes(json.dumps(start).encode())
    return process, pipe


def _end(process: subprocess.Popen[bytes], pipe: Connection) -> None:
    process.kill()
    process.wait()
    pipe.close()


def _serve(pipe: Connection) -> None:
    """The child: answers until the other end is closed, as it is when the server is gone, however it went."""
    start = json.loads(pipe.recv_bytes())
    journal.open_journal(**start["journal"])
    roots = None if start["roots"] is None else tuple(Path(root) for root in start["roots"])
    checker = DirectChecker(Files(Path(start["cache"]), roots, _uploads(start["artifacts"])))
    _stay_within(start["bytes"])
    import torch

    torch.set_num_threads(1)
    with suppress(EOFError, OSError):
        while True:
            pipe.send_bytes(json.dumps(_answer(checker, json.loads(pipe.recv_bytes()))).encode())


def _uploads(artifacts: str | None) -> Uploaded | None:
    if artifacts is None:
        return None
    from workers.artifacts import FolderArtifacts

    return Uploaded(FolderArtifacts(artifacts))


def _half_of_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _stay_within(limit_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
    with suppress(OSError):  # where there is such a thing, the kernel shall end this process before any other
        Path("/proc/self/oom_score_adj").write_text("1000")


def _answer(checker: Checker, question: Mapping[str, Any]) -> Json:
    try:
        if "catalog" in question:
            return {"answer": checker.catalog(question["catalog"])}
        if "teacher" in question:
            named = question["teacher"]
            teacher, dataset = read_part(TeacherSpec, named["teacher"]), read_part(Pick, named["dataset"])
            return {"answer": checker.teacher(teacher, dataset)}
        if "dataset" in question:
            return {"answer": checker.dataset(read_part(Pick, question["dataset"]), question["seconds"])}
        return {"answer": checker.check(read_spec(question["check"]))}
    except StillhouseError as error:
        errors = [asdict(found) for found in error.errors] if isinstance(error, UserError) else None
        return {"error": {"code": error.code, "message": error.message, "errors": errors}}
    except Exception as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            told = Unsupported("this teacher is too large for the memory of the server that checks it; make it smaller")
            return {"error": {"code": told.code, "message": told.message, "errors": [asdict(e) for e in told.errors]}}
        logger.exception("a check failed")
        return {"error": {"code": "INTERNAL", "message": f"{type(error).__name__}: {error}", "errors": None}}


def _raised(told: Mapping[str, Any]) -> StillhouseError:
    """
    What the child raised, with its code, message and errors. Its class is not told: it may be a plugin's own, and to
    name it here would be to import the plugin.
    """
    error: StillhouseError
    if told["errors"] is None:
        error = StillhouseError(told["message"])
    else:
        error = UserError(told["message"])
        error.errors = tuple(FieldError(**{**found, "allowed": tuple(found["allowed"])}) for found in told["errors"])
    error.code = told["code"]
    return error


def _plain(document: Mapping[str, Any]) -> Json:
    """As JSON would bring it back."""
    copy: Json = json.loads(json.dumps(document, allow_nan=False))
    return copy


if __name__ == "__main__":
    _serve(Connection(sys.stdin.fileno()))
