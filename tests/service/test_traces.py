"""Spans of requests and jobs: one trace from the caller to the last trial, with nothing in it that is not ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from sqlalchemy import Engine

from search.errors import UserError
from search.files import Files
from search.trial import Score, State, Trial
from service.app import create_app
from service.checker import CachedChecker, DirectChecker
from service.settings import Settings
from service.store.record import SqlRecord
from service.traces import JobSpans, TracedLedger, Traces, open_traces
from tests.service.served import SPEC, client_of
from workers.memory import MemoryArtifacts
from workers.ports import JobState, Phase

pytestmark = pytest.mark.timeout(30)

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
CANARY = "kaf1kanarienvogel"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter) -> Iterator[Traces]:
    with Traces("http://localhost:1/v1/traces", "test", exporter) as traces:
        yield traces


@pytest.fixture
def app(sqlite: Engine, tmp_path: Path, traces: Traces) -> FastAPI:
    checker = CachedChecker(DirectChecker(Files(tmp_path)))
    settings = Settings(home=tmp_path, auth="off")
    return create_app(settings, SqlRecord(sqlite), MemoryArtifacts(), checker, schema_version="0005", traces=traces)


def spans(exporter: InMemorySpanExporter, traces: Traces) -> list[ReadableSpan]:
    traces.flush()
    return list(exporter.get_finished_spans())


def parent_of(span: ReadableSpan) -> str | None:
    return None if span.parent is None else f"{span.parent.span_id:016x}"


def id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def test_a_job_is_in_the_trace_of_whoever_asked_for_it(
    app: FastAPI, sqlite: Engine, traces: Traces, exporter: InMemorySpanExporter
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "Authorization": f"Bearer {CANARY}", "X-Request-Id": "mine"}
    with client_of(app) as client:
        assert client.post("/v1/jobs", json=SPEC, headers=headers).status_code == 201
    with suppress(RuntimeError), _driven(sqlite, traces) as (ledger, claim):
        ledger.enter(claim, Phase.SEARCH)
        trials = [
            ledger.open_trial(claim, Trial("", 0, f"key-{number}", {"a": number}, {"a": number}, {"macs": 1}))
            for number in range(3)
        ]
        for trial in trials:
            ledger.start_trial(claim, trial.id)
        ledger.score_trial(claim, trials[0].id, Score(0, 10, 0.5, 0.1, 1.0), last=True)
        ledger.close_trial(claim, trials[1].id, State.FAILED, f"NON_FINITE: {CANARY}")
        ledger.finish(claim, Phase.SEARCH, {"finalists": []})
        ledger.enter(claim, Phase.FINALISTS)
        raise RuntimeError(CANARY)

    found = spans(exporter, traces)
    assert {f"{span.context.trace_id:032x}" for span in found if span.context} == {TRACE}
    named = {span.name: span for span in found}
    assert set(named) == {
        "POST /v1/jobs", "job", "phase search", "phase finalists", "trial 0", "trial 1", "trial 2"
    }  # fmt: skip
    above = {name: parent_of(span) for name, span in named.items()}
    ids = {name: id_of(span) for name, span in named.items()}
    assert above["POST /v1/jobs"] == CALLER
    assert above["job"] == ids["POST /v1/jobs"]
    assert above["phase search"] == above["phase finalists"] == ids["job"]
    assert {above[f"trial {number}"] for number in range(3)} == {ids["phase search"]}
    request: Any = named["POST /v1/jobs"].attributes
    assert (request["http.response.status_code"], request["stillhouse.request_id"]) == (201, "mine")
    scored: Any = named["trial 0"].attributes
    assert (scored["stillhouse.accuracy"], scored["stillhouse.trial_id"]) == (0.5, trials[0].id)
    assert {name for name, span in named.items() if span.status.status_code is StatusCode.ERROR} == {"trial 1", "job"}
    assert CANARY not in "".join(span.to_json() for span in found), "neither headers nor messages are told"


class _driven:  # noqa: N801 - a context manager
    """The one job, claimed by a driver that traces."""

    def __init__(self, engine: Engine, traces: Traces) -> None:
        claim = TracedLedger(engine, None).claim("driver", 1000)  # type: ignore[arg-type]
        assert claim is not None
        self._claim, self._spans = claim, JobSpans(traces, claim)
        self._ledger = TracedLedger(engine, self._spans)

    def __enter__(self) -> tuple[TracedLedger, Any]:
        self._spans.__enter__()
        return self._ledger, self._claim

    def __exit__(self, *error: Any) -> None:
        self._spans.__exit__(*error)


def test_a_second_driver_goes_on_in_the_same_trace(
    app: FastAPI, sqlite: Engine, traces: Traces, exporter: InMemorySpanExporter
) -> None:
    with client_of(app) as client:
        client.post("/v1/jobs", json=SPEC)
    for last in (False, True):
        with _driven(sqlite, traces) as (ledger, claim):
            ledger.enter(claim, Phase.TEACHER)
            ledger.close(claim, JobState.SUCCEEDED) if last else ledger.release(claim)
    found = spans(exporter, traces)
    assert len({span.context.trace_id for span in found if span.context}) == 1
    first, second = [span for span in found if span.name == "job"]
    assert parent_of(first) == parent_of(second)
    assert second.attributes is not None
    assert second.attributes["stillhouse.claim"] == 2
    assert second.attributes["stillhouse.state"] == "SUCCEEDED"


@pytest.mark.parametrize(
    "said",
    ["", "nonsense", f"00-{'0' * 32}-{CALLER}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{CALLER}-01", "\xff" * 55],
)
def test_a_parent_that_says_nothing_begins_a_trace(
    app: FastAPI, traces: Traces, exporter: InMemorySpanExporter, said: str
) -> None:
    with client_of(app) as client:
        assert client.get("/healthz", headers={"traceparent": said.encode("latin-1")}).status_code == 200
        client.get(f"/no/{CANARY}")
    known, unknown = spans(exporter, traces)
    assert known.parent is None
    assert (known.name, unknown.name) == ("GET /healthz", "GET"), "an address is the caller's choice, a route is ours"
    assert CANARY not in unknown.to_json()


def test_without_the_variable_nothing_is_traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    settings = Settings(home=tmp_path)
    assert open_traces(settings, "api") is None
    assert settings.environment()["STILLHOUSE_TRACES"] == ""


def test_without_the_extra_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    settings = Settings(home=tmp_path, traces="http://localhost:4318/v1/traces")
    assert settings.environment()["STILLHOUSE_TRACES"] == settings.traces, "drivers trace as their dispatcher does"
    with pytest.raises(UserError, match=r"STILLHOUSE_TRACES is set.*pip install 'stillhouse\[otel\]'"):
        open_traces(settings, "api")
