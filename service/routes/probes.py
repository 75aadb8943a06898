"""For those who run the server: is it alive, is it ready, how does it do, and what is it."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from search.errors import NotFound
from service.auth import may_administer, may_read
from service.deps import RecordDep, SettingsDep
from service.description import answers, shown
from service.problems import KINDS, Refusal, page_of
from service.schemas import BODY_BYTES, LARGEST_PAGE, LONGEST_WAIT, Health, Limits, ProblemPage, Readiness, Server
from service.store.values import suits

open_to_all = APIRouter(tags=["server"])
guarded = APIRouter(tags=["server"], dependencies=[may_read])


@open_to_all.get("/healthz", operation_id="health", responses=answers(example={"status": "ok"}))
async def health() -> Health:
    """Whether the process answers at all; looks at nothing else."""
    return Health(status="ok")


@open_to_all.get(
    "/readyz",
    operation_id="readiness",
    responses=answers("BUSY", "NOT_READY", "STORE_UNAVAILABLE", example={"status": "ready", "schema_version": "0005"}),
)
def readiness(request: Request, record: RecordDep) -> Readiness:
    """Whether requests should be sent here: the record answers, and the server is not about to end."""
    if request.app.state.draining.is_set():
        raise Refusal("NOT_READY", "The server is shutting down; send requests elsewhere or try again later.")
    record.ping()
    found, expected = record.schema_version(), request.app.state.schema_version
    if not suits(found, expected):
        raise Refusal(
            "NOT_READY",
            f"The tables are at revision {found}, and this server works with {expected}. Run `stillhouse migrate`, "
            "or start the version that belongs to them.",
        )
    return Readiness(status="ready", schema_version=str(found))


@guarded.get(
    "/v1/server",
    operation_id="server",
    responses=answers(
        "UNAUTHENTICATED",
        example={
            "name": "stillhouse",
            "version": "0.1.0",
            "backend": "ray",
            "concurrent_jobs": 1,
            "limits": {
                "body_bytes": BODY_BYTES,
                "upload_bytes": 2 * 2**30,
                "page_size": LARGEST_PAGE,
                "wait_seconds": LONGEST_WAIT,
                "event_streams": 64,
                "check_seconds": 60.0,
            },
        },
    ),
)
def server(settings: SettingsDep) -> Server:
    """What this server is, and how much it takes at a time."""
    return Server(
        name="stillhouse",
        version=version("stillhouse"),
        backend=settings.backend,
        concurrent_jobs=settings.concurrent_jobs,
        limits=Limits(
            body_bytes=BODY_BYTES,
            upload_bytes=settings.upload_bytes,
            page_size=LARGEST_PAGE,
            wait_seconds=LONGEST_WAIT,
            event_streams=settings.event_streams,
            check_seconds=settings.check_seconds,
        ),
    )


@guarded.get(
    "/metrics",
    operation_id="metrics",
    dependencies=[may_administer],
    response_class=Response,
    responses={
        200: {
            "description": "Text for Prometheus",
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": shown('stillhouse_jobs{state="QUEUED"} 0.0')}
            },
        },
        **answers("UNAUTHENTICATED", "STORE_UNAVAILABLE"),
    },
)
def metrics(request: Request) -> Response:
    """
    Numbers for Prometheus. Scrape every replica itself, not through a load balancer. While the record cannot be
    reached, `stillhouse_ready` is 0 and what is read from it is missing.
    """
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@open_to_all.get(
    "/problems/{name}",
    operation_id="problem",
    responses=answers(
        "NOT_FOUND",
        "BUSY",
        example={
            "code": "NOT_FOUND",
            "status": 404,
            "title": KINDS["NOT_FOUND"].title,
            "remedy": KINDS["NOT_FOUND"].remedy,
            "retryable": False,
        },
    ),
)
def problem_page(name: str) -> ProblemPage:
    """What a `type` in a problem document means, and what to do about it."""
    for code, kind in KINDS.items():
        if page_of(code) == f"/problems/{name}":
            return ProblemPage(
                code=code, status=kind.status, title=kind.title, remedy=kind.remedy, retryable=kind.retryable
            )
    raise NotFound(f"there is no kind of problem `{name[:64]}`")
