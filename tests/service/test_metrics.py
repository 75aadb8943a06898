"""What Prometheus is told: counted right, by whoever can know it, and still told when the record is away."""

from __future__ import annotations

import socket
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, event

from search.errors import StaleClaim, StoreUnavailable
from search.spec import read_spec
from search.trial import Score, Trial
from service import metrics
from service.metrics import Metrics, dispatcher_registry, publish
from service.settings import InvalidSettings, Settings
from service.store.record import SqlRecord
from service.throttle import Throttle
from tests.databases import WholeLedger
from tests.service.served import client_of, make_app
from workers.dispatcher import Dispatcher
from workers.memory import MemoryLedger
from workers.ports import Claim, JobState, Phase

pytestmark = pytest.mark.timeout(30)  # the first test waits for Postgres to start

SPEC = read_spec({"teacher": {"name": "t"}, "dataset": {"name": "d"}, "budget": {"macs": "50%"}})
MOVED = Trial("", 0, "moved", {"site": 1}, {"site": 2}, {"macs": 3})
KEPT = replace(MOVED, key="kept", origin={"site": 1})


def scraped(registry: CollectorRegistry) -> dict[str, float]:
    """By name and labels, as in the text."""
    text = generate_latest(registry).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        sample.name + "".join(f"|{name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for sample in samples
    }


@pytest.fixture
def told(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Metrics:
    monkeypatch.setattr(metrics, "KEPT_SECONDS", 0.0)
    record = SqlRecord(engine, settled_seconds=0.0)
    return Metrics(record, Throttle(1.0, 1), ready=lambda: True, streams=lambda: 3)


def searching(ledger: WholeLedger, lease_seconds: float = 1000) -> Claim:
    claim = ledger.claim("driver", lease_seconds)
    assert claim is not None
    ledger.enter(claim, Phase.SEARCH)
    return claim


def test_what_happens_in_drivers_is_counted_from_the_record(engine: Engine, told: Metrics) -> None:
    ledger = WholeLedger(engine)
    ledger.submit(SPEC.model_copy(update={"priority": 1}))
    ledger.submit(SPEC)
    claim = searching(ledger)
    for proposal, seconds in ((MOVED, 0.3), (KEPT, 7.0)):
        trial = ledger.start_trial(claim, ledger.open_trial(claim, proposal).id)
        ledger.score_trial(claim, trial.id, Score(0, 10, 0.5, 0.1, seconds), last=False)
    for cached in (False, True):
        ledger.start_trial(claim, trial.id)
        score = Score(1 + cached, 20 + cached, 0.5, 0.1, 100.0, cached)
        ledger.score_trial(claim, trial.id, score, last=cached)
    first = scraped(told.registry)
    assert first["stillhouse_ready"] == 1
    assert first["stillhouse_jobs|state=RUNNING"] == first["stillhouse_jobs|state=QUEUED"] == 1
    assert 0 < first["stillhouse_queue_age_seconds"] < 30
    assert first["stillhouse_claim_latency_seconds_count"] == 1
    assert 0 < first["stillhouse_claim_latency_seconds_sum"] < 30
    assert first["stillhouse_trial_seconds_count"] == 3, "what was taken over took no time"
    assert first["stillhouse_trial_seconds_sum"] == pytest.approx(107.3)
    buckets = [
        first[f"stillhouse_trial_seconds_bucket|le={bound}"] for bound in ("0.1", "0.5", "10.0", "300.0", "+Inf")
    ]
    assert buckets == [0, 1, 2, 3, 3]
    assert first["stillhouse_proposals_total|moved=yes"] == first["stillhouse_proposals_total|moved=no"] == 1
    assert first["stillhouse_event_streams"] == 3
    assert first["stillhouse_outbox_lag_seconds"] == first["stillhouse_outbox_waiting"] == 0

    second = scraped(told.registry)
    still = ("stillhouse_trial_seconds", "stillhouse_claim_latency", "stillhouse_proposals")
    assert {name: value for name, value in second.items() if name.startswith(still)} == {
        name: value for name, value in first.items() if name.startswith(still)
    }, "what was counted once is not counted again"

    ledger.close(claim, JobState.CANCELLED)
    assert searching(ledger).job_id != claim.job_id
    third = scraped(told.registry)
    assert third["stillhouse_queue_age_seconds"] == 0
    assert third["stillhouse_claim_latency_seconds_count"] == 2


def test_lost_leases_and_late_writes_are_counted_on_record(engine: Engine, told: Metrics) -> None:
    ledger = WholeLedger(engine)
    ledger.submit(SPEC)
    stale = searching(ledger, 0.0)
    before = scraped(told.registry)
    assert before["stillhouse_leases_expired_total"] == before["stillhouse_stale_writes_total"] == 0
    claim = searching(ledger)
    trial = ledger.start_trial(claim, ledger.open_trial(claim, MOVED).id)
    late: list[Any] = [
        lambda: ledger.renew(stale, 10),
        lambda: ledger.release(stale),
        lambda: ledger.score_trial(stale, trial.id, Score(0, 10, 0.5, 0.1, 1.0), last=False),
    ]
    for write in late:
        with pytest.raises(StaleClaim):
            write()
    ledger.release(claim)
    searching(ledger)  # one that was given back has not expired
    after = scraped(told.registry)
    assert (after["stillhouse_leases_expired_total"], after["stillhouse_stale_writes_total"]) == (1, 3)
    other = Metrics(SqlRecord(engine), Throttle(1.0, 1), ready=lambda: True, streams=lambda: 0)
    assert scraped(other.registry)["stillhouse_stale_writes_total"] == 3, "every replica tells the same"


def test_how_well_short_training_foretold_is_that_of_the_latest_jobs(engine: Engine, told: Metrics) -> None:
    ledger = WholeLedger(engine)
    assert "stillhouse_proxy_correlation|of=least" not in scraped(told.registry)
    for values in ((0.9, 0.2), (0.5,), (None,), ()):
        ledger.submit(SPEC)
        claim = searching(ledger)
        told_by = [
            {"steps": 40 * (place + 1), "later_steps": 400, "finalists": True, "value": value}
            for place, value in enumerate(values)
        ]
        among = {"steps": 40, "later_steps": 80, "finalists": False, "value": -1.0}
        ledger.enter(claim, Phase.FINALISTS)
        ledger.finish(claim, Phase.FINALISTS, {"evidence": {"correlations": [among, *told_by]}} if values else {})
        ledger.close(claim, JobState.SUCCEEDED)
    found = scraped(told.registry)
    assert found["stillhouse_proxy_correlation|of=least"] == 0.5
    assert found["stillhouse_proxy_correlation|of=median"] == pytest.approx(0.7)


def test_a_scrape_asks_the_record_a_few_questions_and_again_only_after_a_while(sqlite: Engine) -> None:
    asked: list[str] = []
    event.listen(sqlite, "before_cursor_execute", lambda _c, _u, statement, *_: asked.append(statement))
    told = Metrics(SqlRecord(sqlite), Throttle(1.0, 1), ready=lambda: True, streams=lambda: 0)
    scraped(told.registry)
    first = len(asked)
    scraped(told.registry)
    assert len(asked) == first <= 14


class Away(MemoryLedger):
    def counts(self) -> Any:
        raise StoreUnavailable("canary at 10.1.2.3")


def test_the_process_goes_on_telling_of_itself_while_the_record_is_away(tmp_path: Path) -> None:
    with client_of(make_app(tmp_path, Away())) as client:
        client.get("/healthz")
        answer = client.get("/metrics")
    assert answer.status_code == 200
    assert "stillhouse_ready 0.0" in answer.text
    assert "stillhouse_http_seconds_count" in answer.text
    assert "stillhouse_jobs" not in answer.text
    assert "canary" not in answer.text


def test_requests_that_a_key_may_not_make_are_counted(tmp_path: Path) -> None:
    key = "k" * 32
    with client_of(make_app(tmp_path, api_key=key, key_rate=0.001, key_burst=2)) as client:
        client.headers["Authorization"] = f"Bearer {key}"
        statuses = [client.get("/v1/jobs").status_code for _ in range(4)]
        assert statuses == [200, 200, 429, 429]
        found = scraped(client.app.state.metrics.registry)  # type: ignore[attr-defined]
    assert (found["stillhouse_rate_limited_total"], found["stillhouse_throttled_keys"]) == (2, 1)


def test_connections_in_use_are_told(engine: Engine, told: Metrics) -> None:
    with engine.connect():
        found = scraped(told.registry)
    assert 1 <= found["stillhouse_database_connections"] <= found["stillhouse_database_connections_limit"] == 16


def test_a_dispatcher_has_a_port_of_its_own_if_it_is_given_one(tmp_path: Path) -> None:
    dispatcher = Dispatcher(MemoryLedger(), lambda claim: None, owner="o", slots=7, lease_seconds=1)  # type: ignore[arg-type, return-value]
    registry = dispatcher_registry(dispatcher)
    publish(Settings(home=tmp_path), registry)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidSettings, match=f"STILLHOUSE_METRICS_PORT: cannot listen on 127.0.0.1:{port}"):
            publish(Settings(home=tmp_path, metrics_port=port), registry)
    server = publish(Settings(home=tmp_path, metrics_port=0), registry)
    assert server is not None
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
            text = answer.read().decode()
    finally:
        server.shutdown()
        server.server_close()
    assert "stillhouse_driver_slots 7.0" in text
    assert 'stillhouse_drivers_ended_total{well="no"} 0.0' in text
