"""
The web application: routes joined to the record, the artifacts and the checker that they are given.

Nothing here, nor anything imported from here, loads torch or Ray.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

import anyio
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from service.asking import Asking
from service.checker import Checker
from service.description import describe
from service.door import Door, SameOrigin
from service.egress import Gate
from service.lookout import Lookout
from service.metrics import Metrics
from service.oidc import Provider
from service.problems import HANDLERS
from service.routes import accounts, catalog, changes, events, pictures, probes, registered, uploads, webhooks
from service.routes import artifacts as artifact_routes
from service.routes import jobs as job_routes
from service.schemas import BODY_BYTES
from service.settings import Settings
from service.store.ports import Record
from service.store.values import suits
from service.throttle import Throttle
from service.traces import RequestSpans, Traces
from service.turnstile import Turnstile
from workers.ports import Artifacts


def create_app(
    settings: Settings,
    record: Record,
    artifacts: Artifacts,
    checker: Checker,
    *,
    schema_version: str,
    draining: threading.Event | None = None,
    traces: Traces | None = None,
) -> FastAPI:
    """
    `schema_version` is the revision of the tables that this program works with; with an earlier one the app is not
    ready.

    Whoever sets `draining` says that the end is near: readiness goes off, and streams and waiting requests end.
    `checker` is closed with the app.
    """

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            group.start_soon(app.state.lookout.run)
            yield
            app.state.draining.set()
            group.cancel_scope.cancel()
        await run_in_threadpool(checker.close)

    throttle, streams = (
        Throttle(settings.key_rate, settings.key_burst),
        events.Streams(settings.event_streams, settings.key_streams),
    )
    over = draining or threading.Event()
    metrics = Metrics(
        record,
        throttle,
        ready=lambda: not over.is_set() and suits(record.schema_version(), app.state.schema_version),
        streams=lambda: streams.open,
    )
    app = FastAPI(
        title="Stillhouse",
        version=version("stillhouse"),
        summary="Make a CNN small: teacher, dataset and budget in; a distilled student under its budget out.",
        docs_url=None,  # its pages would load scripts from elsewhere
        redoc_url=None,
        lifespan=living,
        redirect_slashes=False,
        middleware=[
            *([] if traces is None else [Middleware(RequestSpans, traces=traces)]),
            Middleware(Door, observe=metrics.observe),
            Middleware(Turnstile, seconds=settings.request_seconds),
            Middleware(TrustedHostMiddleware, allowed_hosts=settings.allowed_hosts, www_redirect=False),
            Middleware(SameOrigin),
            Middleware(RequestBodyLimitMiddleware, max_body_size=BODY_BYTES),
        ],
        exception_handlers=dict(HANDLERS),
    )
    app.state.settings, app.state.record, app.state.artifacts = settings, record, artifacts
    app.state.asking, app.state.throttle = Asking(checker, settings.check_seconds), throttle
    app.state.provider = _provider(settings)
    app.state.gate = Gate(settings.webhook_hosts, insecure=settings.webhook_insecure)
    app.state.metrics, app.state.schema_version = metrics, schema_version
    app.state.draining, app.state.streams, app.state.lookout = over, streams, Lookout(record.latest, over)
    app.state.intake = uploads.Intake()
    for router in (
        probes.open_to_all,
        probes.guarded,
        catalog.router,
        job_routes.router,
        changes.router,
        pictures.router,
        events.router,
        artifact_routes.router,
        uploads.router,
        registered.teachers,
        registered.datasets,
        accounts.router,
        webhooks.router,
    ):
        app.include_router(router)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    return app


def _provider(settings: Settings) -> Provider | None:
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        return None
    return Provider(
        settings.oidc_issuer,
        settings.oidc_audience,
        tenant_claim=settings.oidc_tenant_claim,
        scope_claim=settings.oidc_scope_claim,
        scopes=settings.oidc_scopes,
    )
