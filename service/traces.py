"""
What a request and a job spent their time on, told to an OpenTelemetry collector, if `STILLHOUSE_TRACES` names one.

A job is one trace, that of the request which submitted it and so of whoever called: the request's span, the job's below
it, the phases below that, and in the phases the trials. Where a driver takes over from another, the trace goes on with
a second span of the job. No header and no body becomes part of a span.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from search.errors import UserError
from search.trial import Score, State, Trial
from service import journal
from service.settings import PREFIX, Settings
from service.store.ledger import SqlLedger
from workers.ports import Claim, JobState, Phase

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Span
    from sqlalchemy import Engine

Attributes = Mapping[str, str | int | float]

_HEADER = "traceparent"
_EXPORT_SECONDS = 5


class Traces:
    """
    The spans of one process, sent in batches beside its work. A context manager: at the end the rest is sent.

    `exporter` takes them instead of a collector.

    Raises:
        UserError: OpenTelemetry is not installed.
    """

    def __init__(self, url: str, process: str, exporter: SpanExporter | None = None) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise UserError(
                f"{PREFIX}TRACES is set, and OpenTelemetry is not installed ({error.name}); run "
                "`pip install 'stillhouse[otel]'`, or leave the variable out"
            ) from None
        about = Resource.create({"service.name": f"stillhouse-{process}", "service.version": version("stillhouse")})
        self._provider: TracerProvider = TracerProvider(resource=about)
        exporter = exporter or OTLPSpanExporter(endpoint=url, timeout=_EXPORT_SECONDS)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("stillhouse", version("stillhouse"))
        self._words = TraceContextTextMapPropagator()

    def __enter__(self) -> Traces:
        return self

    def __exit__(self, *_: object) -> None:
        self._provider.shutdown()

    def flush(self) -> None:
        """Returns when all that has ended is sent."""
        self._provider.force_flush()

    def begin(self, name: str, below: Span | str, about: Attributes | None = None, *, server: bool = False) -> Span:
        """
        A span that its caller ends, below another one or below what a `traceparent` says; one that says nothing, or
        what W3C Trace Context does not allow, begins a trace of its own.
        """
        from opentelemetry.trace import SpanKind, set_span_in_context

        context = self._words.extract({_HEADER: below}) if isinstance(below, str) else set_span_in_context(below)
        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        return self._tracer.start_span(name, context, kind=kind, attributes=about)

    def parent(self, span: Span) -> str:
        """The `traceparent` by which others put themselves below a span."""
        from opentelemetry.trace import set_span_in_context

        carrier: dict[str, str] = {}
        self._words.inject(carrier, set_span_in_context(span))
        return carrier[_HEADER]


def open_traces(settings: Settings, process: str) -> Traces | None:
    """What the settings ask for. Raises as `Traces` does."""
    return None if settings.traces is None else Traces(settings.traces, process)


class RequestSpans:
    """A span for every request. Leaves in `request.state.traceparent` what the request's work is to be put below."""

    def __init__(self, app: ASGIApp, traces: Traces) -> None:
        self._app, self._traces = app, traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = Headers(scope=scope).getlist(_HEADER)
        span = self._traces.begin(scope["method"], said[0] if len(said) == 1 else "", server=True)
        parent = self._traces.parent(span)
        scope.setdefault("state", {})[_HEADER] = parent
        journal.about(trace_id=parent.split("-")[1])

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.set_attribute("http.response.status_code", message["status"])
                if message["status"] >= 500:
                    _failed(span)
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except BaseException:
            _failed(span)
            raise
        finally:
            # As in metrics: addresses are the caller's choice, routes are ours.
            route = getattr(scope.get("route"), "path", None)
            span.set_attribute("http.request.method", scope["method"])
            span.set_attribute("stillhouse.request_id", scope["state"].get("request_id", ""))
            if route is not None:
                span.update_name(f"{scope['method']} {route}")
                span.set_attribute("http.route", route)
            span.end()


class JobSpans:
    """The spans of one claim of a job. A context manager, at whose end all of them have ended."""

    def __init__(self, traces: Traces, claim: Claim) -> None:
        self._traces = traces
        about: Attributes = {"stillhouse.job_id": claim.job_id, "stillhouse.claim": claim.token}
        self._job = traces.begin("job", claim.traceparent, about)
        self._phase: Span | None = None
        self._trials: dict[str, Span] = {}

    def __enter__(self) -> JobSpans:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()
        if kind is not None:
            _failed(self._job, kind.__name__)
        self._job.end()

    def enter(self, phase: Phase) -> None:
        self.leave()
        self._phase = self._traces.begin(f"phase {phase}", self._job, {"stillhouse.phase": phase})

    def leave(self) -> None:
        """The phase has ended, and what is open of its trials with it."""
        for trial in list(self._trials):
            self.ended(trial, {})
        if self._phase is not None:
            self._phase.end()
            self._phase = None

    def began(self, trial: Trial) -> None:
        about: Attributes = {
            "stillhouse.trial_id": trial.id,
            "stillhouse.rung": trial.rung,
            "stillhouse.attempt": trial.attempt,
        }
        self.ended(trial.id, {})
        self._trials[trial.id] = self._traces.begin(f"trial {trial.number}", self._phase or self._job, about)

    def ended(self, trial_id: str, told: Mapping[str, Any], *, failed: str = "") -> None:
        span = self._trials.pop(trial_id, None)
        if span is None:
            return
        for name, value in told.items():
            span.set_attribute(f"stillhouse.{name}", value)
        if failed:
            _failed(span, failed)
        span.end()

    def closed(self, state: JobState) -> None:
        self._job.set_attribute("stillhouse.state", state)
        if state is JobState.FAILED:
            _failed(self._job)


class TracedLedger(SqlLedger):
    """The record as one driver writes to it, whose every step is told to its spans once it is on record."""

    def __init__(self, engine: Engine, spans: JobSpans) -> None:
        super().__init__(engine)
        self._spans = spans

    def enter(self, claim: Claim, phase: Phase) -> None:
        super().enter(claim, phase)
        self._spans.enter(phase)

    def finish(self, claim: Claim, phase: Phase, result: Mapping[str, Any], *, revision: int | None = None) -> None:
        super().finish(claim, phase, result, revision=revision)
        self._spans.leave()

    def close(self, claim: Claim, state: JobState, reason: str = "") -> None:
        super().close(claim, state, reason)
        self._spans.closed(state)

    def start_trial(self, claim: Claim, trial_id: str) -> Trial:
        trial = super().start_trial(claim, trial_id)
        self._spans.began(trial)
        return trial

    def score_trial(self, claim: Claim, trial_id: str, score: Score, *, last: bool, worker: str | None = None) -> Trial:
        trial = super().score_trial(claim, trial_id, score, last=last, worker=worker)
        told = {"step": score.step, "accuracy": score.accuracy, "kl": score.kl, "cached": score.cached}
        self._spans.ended(trial_id, told)
        return trial

    def return_trial(self, claim: Claim, trial_id: str, reason: str) -> Trial:
        trial = super().return_trial(claim, trial_id, reason)
        self._spans.ended(trial_id, {"state": trial.state}, failed="returned")
        return trial

    def close_trial(self, claim: Claim, trial_id: str, state: State, reason: str = "") -> Trial:
        trial = super().close_trial(claim, trial_id, state, reason)
        self._spans.ended(trial_id, {"state": state}, failed="failed" if state is State.FAILED else "")
        return trial


def _failed(span: Span, why: str = "") -> None:
    """Says no more than the kind of failure: what a message holds is for the log, which is read by fewer."""
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, why or None))
