"""What happens to a job: a page of it, or live."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated

import anyio
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Message, Receive, Scope, Send

from search.errors import StillhouseError
from service.auth import ANYONE, CallerDep, may_read, still_welcome
from service.deps import JobId, JobsDep
from service.description import answers
from service.documents import event_document
from service.examples import EVENT
from service.lookout import Lookout
from service.problems import Refusal
from service.schemas import LARGEST_PAGE, EventPage, EventPaging
from service.store.ports import Jobs
from workers.events import Kind

logger = logging.getLogger("stillhouse.api")

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], dependencies=[may_read])

ENDS = frozenset({Kind.JOB_SUCCEEDED, Kind.JOB_FAILED, Kind.JOB_CANCELLED})
PING_SECONDS = 15.0
"""Between signs of life. At each it is seen whether the key that the stream was opened with is still good."""
STALLED_SECONDS = 30.0
"""A client that takes nothing for so long is dropped; it may come back and go on where it was."""
_COME_BACK_MILLISECONDS = 2000


@router.get(
    "/{job_id}/events",
    operation_id="jobs.events",
    response_model=EventPage,
    responses={
        **answers(
            "UNAUTHENTICATED",
            "NOT_FOUND",
            "INVALID_PARAMETER",
            "BUSY",
            "TOO_MANY_STREAMS",
            "STORE_UNAVAILABLE",
            example={"events": [EVENT], "next_after": 12},
        ),
        204: {"description": "To a stream: the job has ended and every event of it was seen; do not come back"},
    },
)
async def events(
    request: Request,
    job_id: JobId,
    paging: Annotated[EventPaging, Query()],
    caller: CallerDep,
    jobs: JobsDep,
    last_event_id: Annotated[
        str | None, Header(pattern=r"^[0-9]{1,15}$", description="For streams: the `id` of the last event seen.")
    ] = None,
) -> Response:
    """
    What has happened to a job, in order and numbered without gaps.

    With `Accept: text/event-stream` it is told live: events so far, then each as it happens, until the job's end. The
    `id` of an event is its `seq`; a client that was cut off goes on by `Last-Event-ID`.
    """
    # Not a plain `def`, and polled from the event loop: a stream must not hold a thread while nothing happens.
    if not _wants_stream(request.headers.get("accept", "")):
        found = await run_in_threadpool(jobs.events, job_id, paging.after, paging.size)
        page = EventPage(
            events=[event_document(event) for event in found], next_after=found[-1].seq if found else paging.after
        )
        return Response(page.model_dump_json(), media_type="application/json")
    after = int(last_event_id) if last_event_id is not None else paging.after
    record = await run_in_threadpool(jobs.job, job_id)
    if record.state.terminal and not await run_in_threadpool(jobs.events, job_id, after, 1):
        return Response(status_code=204)
    streams: Streams = request.app.state.streams
    streams.check(caller.actor)
    return _Stream(streams, caller.actor, _told(request, jobs, job_id, after))


class Streams:
    """How many streams are open, in all and by key. Belongs to one event loop, so it needs no lock."""

    def __init__(self, limit: int, of_each: int) -> None:
        self._limit, self._of_each = limit, of_each
        self._actors = Counter[str]()

    @property
    def open(self) -> int:
        return self._actors.total()

    def check(self, actor: str) -> None:
        """Raises `Refusal` when no further one may be opened; where nobody is asked for a key, nobody has too many."""
        if self.open >= self._limit:
            message = "As many event streams are open as this server keeps; try again later, or read pages."
            raise Refusal("BUSY", message)
        if actor != ANYONE and self._actors[actor] >= self._of_each:
            message = f"This key has {self._of_each} event streams open and may have no more; close one, or read pages."
            raise Refusal("TOO_MANY_STREAMS", message)

    @contextmanager
    def place(self, actor: str) -> Iterator[None]:
        self._actors[actor] += 1
        try:
            yield
        finally:
            self._actors[actor] -= 1
            self._actors += Counter()  # forgets those at 0


class _Stream(EventSourceResponse):
    """Drops a client that does not read, so that it holds neither memory nor a place for ever."""

    def __init__(self, streams: Streams, actor: str, told: AsyncIterator[bytes]) -> None:
        super().__init__(told, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._streams, self._actor = streams, actor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._streams.place(self._actor):
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        async def impatient(message: Message) -> None:
            with anyio.fail_after(STALLED_SECONDS):
                await send(message)

        try:
            await super().stream_response(impatient)
        except TimeoutError:
            logger.info("an event stream was dropped: its client read nothing for %.0f s", STALLED_SECONDS)


def _wants_stream(accept: str) -> bool:
    return any(kind.partition(";")[0].strip().lower() == "text/event-stream" for kind in accept.split(","))


async def _told(request: Request, jobs: Jobs, job_id: str, after: int) -> AsyncIterator[bytes]:
    lookout: Lookout = request.app.state.lookout
    draining: threading.Event = request.app.state.draining
    yield format_sse_event(retry=_COME_BACK_MILLISECONDS)
    next_ping = time.monotonic() + PING_SECONDS
    try:
        with lookout.watching(job_id, after) as watch:
            while not draining.is_set():
                found = await run_in_threadpool(jobs.events, job_id, after, LARGEST_PAGE)
                for event in found:
                    after = event.seq
                    document = event_document(event).model_dump_json()
                    yield format_sse_event(data_str=document, event=event.kind, id=str(event.seq))
                    if event.kind in ENDS:
                        return
                if time.monotonic() >= next_ping:
                    next_ping = time.monotonic() + PING_SECONDS
                    if not await run_in_threadpool(still_welcome, request):
                        logger.info("the event stream of %s ends: its key is revoked or over", job_id)
                        return
                    yield KEEPALIVE_COMMENT
                    if not found and (await run_in_threadpool(jobs.job, job_id)).state.terminal:
                        return  # the client claims to have seen events that never were
                if len(found) < LARGEST_PAGE:
                    await watch.news(max(next_ping - time.monotonic(), 0.0))
    except StillhouseError as error:
        logger.warning("the event stream of %s ends early: %s", job_id, error)
